#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mutate_kernels.py SOURCE TREE LIST [ROWS]

Copies the repository SOURCE to TREE with every mutation of every kernel built in, each asleep until the environment's
NIBBLE_MUTANT is its number, so that one build tries them all. LIST gets a line for each: number, file, line, kind, key, tabs
between. A key tells the mutation by its text, so that it outlives other edits of the file. With ROWS, names with commas between,
tests of other rows stay out. Tests of the examples' kernels become rows like others: those whose first header is the launchers' of
a file of kernels, which want nothing else of the examples that would have to be linked.

What is mutated, in kernels/nibble/kernels/detail and examples/*/cuda/detail, by the text alone:
  wait   a barrier, warp_barrier, fence or cp_async_wait is left out.
  bound  a comparison by < > <= >= as part of a condition. In an `if` that leaves (return, continue, break) it is false, in other `if`s
         true: the check is gone. In the condition of a loop its right side is one more. Elsewhere (?:, a bool, an argument) it is
         true, and in a second mutation false. `x == Items` (a parameter of a template) asks whether all of an access is there:
         true. An `if` that leaves for another reason stays, too: each operand of its || is false.
  clamp  min(a, b) or max(a, b) is a, and in a second mutation b.
  sum    device::add, subtract, multiply, divide or fused is its first argument.
Left out: what is constexpr, and loops whose number of turns no shape decides: unrolled ones, and up to a number or a parameter of
a template. device.cuh, arithmetic.cuh and mma.cuh are one instruction a function; the executor has its own.
"""
import glob
import os
import re
import subprocess
import sys

FOLDERS = ("kernels/nibble/kernels/detail/", "examples/mistral/cuda/detail/", "examples/pass/cuda/detail/")
NOT_RUN = {"device.cuh", "arithmetic.cuh", "mma.cuh"}
HOOK = """
#ifndef NIBBLE_MUTATION_HOOK
#define NIBBLE_MUTATION_HOOK
#include <cstdlib>
namespace nibble_mutation {
inline const int awake = std::getenv("NIBBLE_MUTANT") ? std::atoi(std::getenv("NIBBLE_MUTANT")) : 0;
inline bool is(int number) { return awake == number; }
template <int First, int Second, class F, class A, class... B>
auto operand(F f, A a, B... b) {
  if (is(First)) return static_cast<decltype(f(a, b...))>(a);
  if constexpr (sizeof...(B) == 1)
    if (Second > 0 && is(Second)) return static_cast<decltype(f(a, b...))>((b, ...));
  return f(a, b...);
}
}  // namespace nibble_mutation
#endif
"""
WAIT = re.compile(r"device::(?:barrier|warp_barrier|fence|cp_async_wait<\w+>)\(")
COMPARE = re.compile(r"(?<=\s)(?:<=|>=|<|>)(?=\s)|(?<=\s)==(?=\s[A-Z][a-z]\w*\b(?!\())")
PICK = re.compile(r"(?<![\w:.])(?:min|max)\(")
SUM = re.compile(r"(?<![\w:])device::(?:add|subtract|multiply|divide|fused)\(")
LEAVES = re.compile(r"\s*\{?\s*(?:return|continue|break)\b")
OPEN, CLOSE = "([{", ")]}"


def blank(text, begin, end):
    return text[:begin] + re.sub(r"[^\n]", " ", text[begin:end]) + text[end:]


def closing(text, at):
    """Just past the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] in OPEN) - (text[i] in CLOSE)
        if depth == 0:
            return i + 1
    raise ValueError(f"no end of {text[at:at + 40]!r}")


def statement_end(text, at):
    while text[at] not in ";{(":
        at += 1
    if text[at] == "(":
        return statement_end(text, closing(text, at))
    return closing(text, at) if text[at] == "{" else at + 1


def masked(text):
    """The code alone: comments, preprocessor lines and what is constexpr are blank, every character in its place."""
    for pattern in (r"//[^\n]*", r'"(?:\\.|[^"\n])*"', r"(?m)^\s*#(?!pragma unroll)[^\n]*"):
        for m in reversed(list(re.finditer(pattern, text))):
            text = blank(text, m.start(), m.end())
    for m in re.finditer(r"\bif constexpr (?=\()", text):
        text = blank(text, m.end(), closing(text, m.end()))
    for m in re.finditer(r"(?<!if )\bconstexpr\b|\bstatic_assert\b|\bNIBBLE_SHARED\b", text):
        if not text[m.start():m.end()].isspace():
            text = blank(text, m.start(), statement_end(text, m.start()))
    return text


ENDS = re.compile(r"&&|\|\||[?;,]|(?<!:):(?!:)|(?<![=<>!])=(?!=)|\breturn\b")


def reach(code, at, step):
    """Where the operand that touches position `at` ends, to the left (step −1) or to the right."""
    inward, outward = (OPEN, CLOSE) if step > 0 else (CLOSE, OPEN)
    depth, i = 0, at
    while True:
        c = code[i]
        if depth == 0 and c in outward:
            break
        depth += (c in inward) - (c in outward)
        if depth == 0:
            found = [m for m in ENDS.finditer(code, max(0, i - 6), i + 7) if m.start() <= i < m.end()]
            if found:
                break
        i += step
    begin, end = (i + 1, at + 1) if step < 0 else (at, i)
    piece = code[begin:end]
    return begin + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))


def context(code, at):
    """(keyword, its parenthesis) of the condition in which `at` stands, or ("", 0)."""
    depth = semicolons = 0
    for i in range(at - 1, -1, -1):
        c = code[i]
        if c in CLOSE:
            depth += 1
        elif c in OPEN and depth > 0:
            depth -= 1
        elif c == ";" and depth == 0:
            semicolons += 1
        elif c == "(":
            m = re.search(r"\b(if|for|while)\s*$", code[max(0, i - 10):i])
            if m or semicolons:
                return (m[1], i) if m and semicolons == (m[1] == "for") else ("", 0)
        elif c == "{" and (semicolons or re.search(r"(?:[);{}]|\belse|\bconst)\s*$", code[max(0, i - 10):i])):
            return "", 0
    return "", 0


def alternatives(code, begin, end):
    """The operands of || in a condition [begin, end)."""
    depth, start = 0, begin
    for i in range(begin, end):
        depth += (code[i] in OPEN) - (code[i] in CLOSE)
        if depth == 0 and code.startswith("||", i):
            yield start, i
            start = i + 2
    yield start, end


class Mutator:
    def __init__(self, first):
        self.number, self.list = first, []

    def mutate(self, path, text):
        code, edits = masked(text), []  # (position, rank, what to put there, how many characters it replaces)
        for m in WAIT.finditer(code):
            end = closing(code, m.end() - 1)
            n = self.add(path, text, m.start(), "wait", f"without {text[m.start():end]}", after=end + 1)
            edits += [(m.start(), 0, f"(nibble_mutation::is({n}) ? void() : ", 0), (end, 9, ")", 0)]
        for m in COMPARE.finditer(code):
            self.bound(path, text, code, m, edits)
        for m in re.finditer(r"\bif (?=\()", code):
            self.leave(path, text, code, m.end(), edits)
        for m in [*PICK.finditer(code), *SUM.finditer(code)]:
            kind = "clamp" if m[0][0] == "m" else "sum"
            what = text[m.start():closing(code, m.end() - 1)]
            first = self.add(path, text, m.start(), kind, f"{what} is its first operand")
            second = self.add(path, text, m.start(), kind, f"{what} is its second operand") if kind == "clamp" else 0
            call = f"nibble_mutation::operand<{first}, {second}>([](auto... x) {{ return {m[0]}x...); }}, "
            edits.append((m.start(), 5, call, m.end() - m.start()))
        for at, _, what, gone in sorted(edits, reverse=True):
            text = text[:at] + what + text[at + gone:]
        return text.replace("#pragma once\n", "#pragma once\n" + HOOK, 1)

    def bound(self, path, text, code, m, edits):
        begin, _ = reach(code, m.start() - 1, -1)
        right, end = reach(code, m.end(), 1)
        what, (keyword, opened) = " ".join(text[begin:end].split()), context(code, begin)
        if keyword in ("for", "while"):
            unrolled = re.search(r"#pragma unroll\s*$", code[:opened - len(keyword) - 1])
            if unrolled or re.fullmatch(r"(?:[A-Z]\w*|\d+|::\w+|[ /*+])+", code[right:end]) and m[0][0] == "<":
                return
            n = self.add(path, text, begin, "bound", f"{what} + 1")
            edits += [(right, 1, "(", 0), (end, 8, f") + nibble_mutation::is({n})", 0)]
            return
        if m[0] == "==":
            values = ["true"]
        elif keyword == "if":
            values = ["false" if LEAVES.match(code, closing(code, opened)) else "true"]
            if re.search(r"!\s*\($", code[:begin]):
                values = ["true" if values == ["false"] else "false"]
        else:
            values = ["true", "false"]
        for value in values:
            n = self.add(path, text, begin, "bound", f"{what} is {value}")
            of_its_type = f"decltype({text[begin:end]}){{{value}}}"  # what a comparison of lanes gives is no bool
            edits += [(begin, 2, f"(nibble_mutation::is({n}) ? {of_its_type} : (", 0), (end, 7, "))", 0)]

    def leave(self, path, text, code, opened, edits):
        closed = closing(code, opened)
        if not LEAVES.match(code, closed):
            return
        for begin, end in alternatives(code, opened + 1, closed - 1):
            what = " ".join(text[begin:end].split())
            if not COMPARE.search(code, begin, end):
                n = self.add(path, text, begin, "bound", f"{what} is false")
                edits += [(begin, 2, f"(!nibble_mutation::is({n}) && (", 0), (end, 7, "))", 0)]

    def add(self, path, text, at, kind, what, after=None):
        line = text.count("\n", 0, at)
        lines = text.splitlines()
        if after is not None:  # a wait: what tells it apart is what comes next
            last, following = ([x.strip() for x in part if x.strip() and not x.startswith("#")]
                               for part in (lines[line::-1], lines[line + 1:]))
            beside = f"between {last[1] if text[at:].startswith(last[0][:9]) else last[0]} and {following[0]}"
        else:
            beside = "in " + lines[line].strip()
        key = f"{path}: {' '.join(what.split())}, {beside}"
        again = sum(k == key or k.startswith(key + " #") for *_, k in self.list)
        self.number += 1
        self.list.append((self.number, path, line + 1, kind, f"{key} #{again + 1}" if again else key))
        return self.number


def main():
    source, tree, listed = sys.argv[1:4]
    rows = sys.argv[4].split(",") if len(sys.argv) > 4 and sys.argv[4] else None
    git = ["git", "-C", source, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(git, check=True, capture_output=True, text=True).stdout.split("\0")
    mutator, tests = Mutator(0), set()
    for f in sorted(f for f in files if os.path.isfile(os.path.join(source, f))):
        with open(os.path.join(source, f), "rb") as file:
            data = file.read()
        at = f
        if f.startswith(FOLDERS) and f.endswith(".cuh") and os.path.basename(f) not in NOT_RUN:
            data = mutator.mutate(f, data.decode()).encode()
        elif is_test := re.fullmatch(r"tests/(?:(mistral_cuda|simt)/)?(\w+)\.cu", f):
            of = re.search(rb'"((?:mistral|pass)/cuda/)(\w+\.cuh)"', data)
            known = of and os.path.isfile(os.path.join(source, "examples", of[1].decode(), "detail", of[2].decode()))
            if is_test[1] == "simt" or is_test[1] and not known or rows and is_test[2] not in rows:
                continue
            at = f"tests/{is_test[2]}.cu"
            tests.add(at)
        at = os.path.join(tree, at)
        if os.path.exists(at) and open(at, "rb").read() == data:
            continue
        os.makedirs(os.path.dirname(at), exist_ok=True)
        with open(at, "wb") as file:
            file.write(data)
        os.chmod(at, os.stat(os.path.join(source, f)).st_mode & 0o777)
    for at in glob.glob("tests/*.cu", root_dir=tree):
        if at not in tests:
            os.remove(os.path.join(tree, at))
    with open(listed, "w") as file:
        for m in mutator.list:
            file.write("\t".join(str(x) for x in m) + "\n")


main()
