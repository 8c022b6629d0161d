#!/usr/bin/env python3
"""What each direct dependency costs: the crates that nothing else brings, and the source files that name it.

    python3 .ci/dependencies.py [LEAST]      only those that bring LEAST crates or more (default 4)

The figures are of a default build without its tests, on x86-64 Linux. Two dependencies that need the same crate bring it
together, so it counts for neither.
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLATFORM = "x86_64-unknown-linux-gnu"


def metadata():
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", PLATFORM]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def main():
    least = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    data = metadata()
    names = {package["id"]: package["name"] for package in data["packages"]}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    members = set(data["workspace_members"])
    (root,) = (member for member in members if names[member] == "forebay")

    def needs(package):
        """The packages that a build of this one needs, tests and build scripts apart."""
        return [d["pkg"] for d in nodes[package]["deps"] if any(kind["kind"] is None for kind in d["dep_kinds"])]

    def reached(without=None):
        seen, open_ = set(), [root]
        while open_:
            package = open_.pop()
            if package not in seen and names[package] != without:
                seen.add(package)
                open_ += needs(package)
        return seen

    everything = reached()
    sources = {path: path.read_text() for folder in ("src", "crates") for path in (ROOT / folder).rglob("*.rs")}
    direct = {names[package] for member in members for package in needs(member)} - {names[m] for m in members}
    print(f"{len(everything)} crates in all, {len(members)} of them ours")
    print(f"{'dependency':30}{'brings':>7}{'files that name it':>20}")
    for brings, name in sorted(((len(everything - reached(name)), name) for name in direct), reverse=True):
        if brings >= least:
            word = re.compile(rf"\b{name.replace('-', '_')}::")
            print(f"{name:30}{brings:7}{sum(1 for text in sources.values() if word.search(text)):20}")


if __name__ == "__main__":
    main()
