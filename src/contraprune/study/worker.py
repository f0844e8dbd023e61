"""The process of one run of a study: reads what to do from its standard input, and ends with the process at the
other side of it, so that a worker that is killed leaves nothing running behind.
"""

import json
import os
import sys
import threading
import traceback

from filelock import FileLock

from contraprune.allocator import keep_freed_memory
from contraprune.errors import UserError
from contraprune.pipeline import prune


def main() -> int:
    """Exit code 0, or 1 after an error whose description is the last line of standard error."""
    job = json.loads(sys.stdin.readline())
    keep_freed_memory()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        with FileLock(job["lock"]):  # a worker that was taken for dead may still be here
            prune(**job["options"])
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _end_with_the_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read(), which the end of the interpreter waits for
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
