"""Where settings files are looked for: apart, because every start asks, and hardly any finds one."""

from __future__ import annotations

import os

OWN_FILE = "gpualloc.toml"  # in the working directory


def settings_paths() -> list[str]:
    """Those looked for, the stronger last: $XDG_CONFIG_HOME/gpualloc/config.toml, else under ~/.config; then ./gpualloc.toml."""
    config_home = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG base directory specification: a relative path is invalid and must be ignored.
    root = config_home if os.path.isabs(config_home) else os.path.join(os.path.expanduser("~"), ".config")
    return [os.path.join(root, "gpualloc", "config.toml"), OWN_FILE]


def has_settings_files() -> bool:
    return any(map(os.path.isfile, settings_paths()))
