"""Envoy's configuration, with every default that matters to gRPC set on purpose.

Each value is explained in docs/decisions/0016-envoy-front.md.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

APPLICATION = "cellport.serve.envoy_child:app"
STATISTICS = "grpc"

_MIB = 2**20
# What one stream may send before the server reads it; what is held of a stream that is not read follows it.
_STREAM_WINDOW = 4 * _MIB
_CONNECTION_WINDOW = 24 * _MIB
# Bytes of an answer, or of a request that is not read, that are held before their sender has to wait.
_BUFFER = _MIB
_NO_LIMIT = 2**31 - 1
_HEADERS_KIB = 64
_HEADERS = 200
_PRELOADS = {"LD_PRELOAD", "DYLD_INSERT_LIBRARIES"}
_MANAGER = "envoy.filters.network.http_connection_manager"


def why_not() -> str | None:
    """Return why this front cannot be used here, or None if it can."""
    if sys.platform not in ("linux", "darwin"):
        return f"Envoy has no build for {sys.platform!r}"
    for name in ("pyvoy", "envoy"):
        if importlib.util.find_spec(name) is None:
            return "the package 'pyvoy' is not installed; pip install 'cellport[fast]'"
    # Envoy is not linked with Python and loads its library first.
    if not _PRELOADS & child_environment().keys():
        return "this Python has no shared library (libpython), which Envoy would load"
    return None


def child_environment() -> dict[str, str]:
    """Return what Envoy's process needs in its environment to run this Python."""
    from pyvoy._server import get_envoy_environ

    environment = dict(get_envoy_environ())
    for name in _PRELOADS & environment.keys() & os.environ.keys():
        environment[name] += os.pathsep + os.environ[name]
    return environment


def build_config(host: str, port: int, admin: Path) -> dict[str, Any]:
    """Return Envoy's configuration.

    Args:
        host: address to listen on, as a number.
        port: port to listen on; 0 for a free one.
        admin: path of the socket at which Envoy answers questions about itself.
    """
    from pyvoy import PyvoyServer

    config: dict[str, Any] = PyvoyServer(APPLICATION, address=host, port=port, lifespan=True).get_envoy_config()
    config["admin"] = {"address": {"pipe": {"path": str(admin), "mode": 0o600}}}
    listener = config["static_resources"]["listeners"][0]
    # Envoy hangs up on a client that cancels many of its calls, and so breaks off the others. In gRPC that is how
    # deadlines end, and no attack. (So does nghttp2, see `stream_reset_burst` below.)
    runtime = {"overload.premature_reset_total_stream_count": _NO_LIMIT}
    config["layered_runtime"] = {"layers": [{"name": "cellport", "static_layer": runtime}]}
    # Two servers on one port would share its connections at random.
    listener["enable_reuse_port"] = False
    listener["per_connection_buffer_limit_bytes"] = _BUFFER
    if ":" in host:
        listener["address"]["socket_address"]["ipv4_compat"] = host == "::"
    manager = next(each for each in listener["filter_chains"][0]["filters"] if each["name"] == _MANAGER)
    manager["typed_config"] |= {
        "stat_prefix": STATISTICS,
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "request_headers_timeout": "10s",
        "max_request_headers_kb": _HEADERS_KIB,
        "server_header_transformation": "PASS_THROUGH",
        "skip_xff_append": True,
        "common_http_protocol_options": {
            "idle_timeout": "3600s",
            "max_headers_count": _HEADERS,
            "max_stream_duration": "0s",
        },
        "http2_protocol_options": {
            "max_concurrent_streams": _NO_LIMIT,
            "initial_stream_window_size": _STREAM_WINDOW,
            "initial_connection_window_size": _CONNECTION_WINDOW,
            "stream_reset_burst": _NO_LIMIT,
            "stream_reset_rate": _NO_LIMIT,
        },
    }
    return config
