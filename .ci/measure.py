#!/usr/bin/env python3
"""Figures of the source tree: how large its parts are, which names mean two things, and how far a small change reaches.

    python3 .ci/measure.py [FOLDER]      the checkout to measure, by default this one (`just measure`)

Lines are those before a file's tests; functions are counted by their braces, as rustfmt sets them.
"""

import collections
import pathlib
import re
import sys

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent)
TESTS = re.compile(r"^#\[cfg\(test\)\]\s*(?:pub(?:\([a-z]+\))? )?mod \w+", re.M)
TYPE = re.compile(r"^\s*(?:pub(?:\([^)]*\))?\s+)?(?:struct|enum|trait|union)\s+([A-Z]\w*)", re.M)
FUNCTION = re.compile(r"^( *)(?:pub(?:\([^)]*\))? )?(?:const )?(?:async )?(?:unsafe )?fn (\w+)", re.M)
# What a small change is taken for: the files that name it, tests and documents apart.
EXAMPLES = {
    "config key (header_timeout)": r"\bheader_timeout\b",
    "config key (stall_timeout)": r"\bstall_timeout\b",
    "policy (p2c)": r"\b(?:P2c|p2c)\b",
    "policy (least_inflight)": r"\b(?:LeastInflight|least_inflight)\b",
    "gauge (KV_USAGE)": r"\bKV_USAGE\b",
    "gauge (ARM_GPUS)": r"\bARM_GPUS\b",
    "counter (EJECTIONS)": r"\bEJECTIONS\b",
}


def sources(crate):
    for path in sorted(crate.rglob("*.rs")):
        if path.name != "tests.rs" and "tests" not in path.relative_to(crate).parts:
            text = path.read_text()
            tests = TESTS.search(text)
            yield path, text[: tests.start()] if tests else text


def functions(text):
    """The length in lines of each function with a body."""
    lines = text.split("\n")
    for found in FUNCTION.finditer(text):
        start = text.count("\n", 0, found.start())
        closing = found.group(1) + "}"
        for end in range(start, len(lines)):
            if lines[end].rstrip() == closing:
                yield end - start + 1
                break
            if end == start and lines[end].rstrip().endswith(";"):
                break


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0


def main():
    crates = {"forebay": ROOT / "src"}
    crates |= {path.parent.name: path for path in sorted(ROOT.glob("crates/*/src"))}
    names, files, lengths, everything = 0, [], [], {}
    collisions = []
    print(f"{'crate':16}{'files':>6}{'lines':>8}{'types':>7}{'named twice':>13}")
    for name, folder in crates.items():
        types, lines = collections.Counter(), 0
        for path, text in sources(folder):
            files.append(text.count("\n"))
            lines += files[-1]
            lengths += functions(text)
            everything[path] = text
            types.update(found for found in TYPE.findall(text) if found != "Args")
        twice = {found: count for found, count in types.items() if count > 1}
        names += sum(types.values())
        collisions += [f"{name}: {found} ({count})" for found, count in sorted(twice.items())]
        count = sum(1 for path in everything if path.is_relative_to(folder))
        print(f"{name:16}{count:6}{lines:8}{sum(types.values()):7}{sum(twice.values()):13}")
    twice = sum(int(line.rsplit("(", 1)[1][:-1]) for line in collisions)
    print(f"\nfiles: p50 {quantile(files, 0.5)} lines, p90 {quantile(files, 0.9)}, longest {max(files)}")
    print(f"functions: p90 {quantile(lengths, 0.9)} lines, p99 {quantile(lengths, 0.99)}, longest {max(lengths)}")
    print(f"type names defined more than once in a crate: {twice} of {names} ({100 * twice / names:.1f} %)")
    for line in collisions:
        print(f"  {line}")
    print("\nsource files that name one")
    for what, pattern in EXAMPLES.items():
        found = [path.relative_to(ROOT) for path, text in everything.items() if re.search(pattern, text)]
        print(f"  {what:30}{len(found):3}   {', '.join(str(path) for path in found)}")


if __name__ == "__main__":
    main()
