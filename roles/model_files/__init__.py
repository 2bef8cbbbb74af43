"""Model folders on disk: conversion, GGUF files, headers of weights, and whether they belong to their config.json."""
