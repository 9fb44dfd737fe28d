"""Runs hooks as Ganeti's node daemon does: ganeti.backend.HooksRunner, from Debian's package ganeti-3.0.

    ganeti_runner.py GANETI_DIR HOOKS_DIR < runs.jsonl

Each line of the input is {"hooks_path": ..., "phase": ..., "env": {...}}; each line of the output what RunHooks returned for it, a list of
[script, status, output], where the status is the name of Ganeti's constant.
"""

import json
import sys

sys.path.insert(0, sys.argv[1])

from ganeti import backend, constants  # noqa: E402

NAMES = {
    constants.HKR_SUCCESS: "success",
    constants.HKR_FAIL: "fail",
    constants.HKR_SKIP: "skip",
}

runner = backend.HooksRunner(hooks_base_dir=sys.argv[2])
for line in sys.stdin:
    run = json.loads(line)
    results = runner.RunHooks(run["hooks_path"], run["phase"], run["env"])
    print(json.dumps([[script, NAMES[status], output] for script, status, output in results]), flush=True)
