"""Lists lines of more than 100 columns in the files that git tracks: columns.py

A tab counts 4. Tables of Markdown, lines without a space after their indentation (addresses) and
generated files are exempt.
"""

import subprocess
import sys

LIMIT = 100
ENDINGS = (".go", ".cpp", ".h", ".inl", ".py", ".sh", ".md", ".txt", ".cmake", "Makefile")


def long_lines(path):
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            line = line.rstrip("\n").expandtabs(4)
            table = path.endswith(".md") and line.startswith("|")
            if len(line) > LIMIT and not table and " " in line.strip():
                yield number, len(line)


def main():
    files = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout
    count = 0
    for path in files.splitlines():
        if not path.endswith(ENDINGS) or "testdata/" in path or "requirements" in path:
            continue
        for number, columns in long_lines(path):
            print(f"{path}:{number}: {columns} columns, at most {LIMIT} are allowed")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
