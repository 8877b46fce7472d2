"""What pip would install on this platform by constraints.txt, with the hash of every file: `make lock`.

Reads pip's installation report from standard input, and prints requirements for `pip install --require-hashes -r`.
"""

import json
import platform
import sys

PLATFORM = f"{platform.system()} {platform.machine()} and Python {sys.version_info[0]}.{sys.version_info[1]}"
HEAD = f"""# Every package of constraints.txt with the hash of its file, for {PLATFORM};
# torch is the CPU build. Written by `make lock`."""


def main() -> None:
    """Sort by name; the project itself has no hash."""
    lines = [HEAD]
    for item in sorted(json.load(sys.stdin)["install"], key=lambda item: item["metadata"]["name"].lower()):
        hashes = item["download_info"].get("archive_info", {}).get("hashes")
        if hashes:
            metadata = item["metadata"]
            version = metadata["version"].partition("+")[0]
            lines.append(f"{metadata['name']}=={version} --hash=sha256:{hashes['sha256']}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
