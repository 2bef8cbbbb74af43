"""Which calls over HTTP go through a proxy: what `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` mean for us.

An address of the machine itself is never asked for at a proxy, which would look for it on its own machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import MutableMapping
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Add this machine to `no_proxy`, for libraries and processes that read it (Ray's and vLLM's among them)."""
    said = next((environment[name] for name in ("no_proxy", "NO_PROXY") if environment.get(name)), "")
    entries = [_name_of(entry.strip()) if entry.strip().endswith("]") else entry.strip() for entry in said.split(",")]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(dict.fromkeys(filter(None, [*entries, *LOOPBACK])))


def proxy_of(url: str) -> str | None:
    """The environment's proxy for `url`; None if it goes there directly.

    An entry of `no_proxy` is a name (and all names below it), an address, a network such as `10.0.0.0/8` or
    `fd00::/8`, or `*`.
    """
    parts, proxies = urlsplit(url), getproxies_environment()
    host = parts.hostname or ""
    if _is_loopback(host) or any(_excludes(entry.strip(), host) for entry in proxies.get("no", "").split(",")):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return address.is_loopback if address else host.lower() == "localhost"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _excludes(entry: str, host: str) -> bool:
    """Whether one entry of `no_proxy` names the host. An entry's port is not looked at."""
    address, name = _address(host), _name_of(entry)
    if address is None:
        bare = name.lower().lstrip(".")
        return name == "*" or (bool(bare) and f".{host.lower()}".endswith(f".{bare}"))
    try:
        return name == "*" or address in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False


def _name_of(entry: str) -> str:
    """Without a port, and without the brackets that only some libraries read: `[::1]:8000` → `::1`."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry
