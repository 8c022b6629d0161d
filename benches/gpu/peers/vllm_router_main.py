"""The command of vllm-router's package, from an unpacked wheel: without the packages that only its other modes need."""

import argparse

from vllm_router.router import Router
from vllm_router.router_args import RouterArgs

parser = argparse.ArgumentParser()
RouterArgs.add_cli_args(parser, use_router_prefix=False)
arguments = RouterArgs.from_cli_args(parser.parse_args(), use_router_prefix=False)
Router.from_args(arguments).start()
