"""Model folders on disk: conversion, GGUF files, headers of weights, and whether weights fit their config.json."""
