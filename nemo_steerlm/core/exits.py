"""Where exceptions become exit codes: the end of every command, script and module that runs by itself."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from nemo_steerlm.core.environment import ERROR_FILE
from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.core.extras import missing_extra


def run_and_exit(function: Callable[[], Any], program: str = "steerlm") -> None:
    """Call ``function``; on an error of this package print one line to stderr and exit with its code. Ctrl-C exits 130.

    The only place where exceptions become exit codes. If the environment names an error file, the error is written there too: a launcher
    that started several processes knows from it which of them failed first, and why.
    """
    try:
        function()
    except SteerLMError as error:
        _end(error, program)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (missing := missing_extra(error)):
            _end(missing, program)
        _record(f"{type(error).__name__}: {error}", py_callstack=traceback.format_exc())
        raise
    finally:
        # An interpreter that ends looks for garbage once more: four seconds of CPU after NeMo's imports, for memory that goes anyway.
        gc.freeze()


def _end(error: SteerLMError, program: str) -> NoReturn:
    _record(str(error))
    sys.stderr.write(f"{program}: {error}\n")
    sys.exit(error.exit_code)


def _record(sentence: str, **more: str) -> None:
    """Write the error file as torch.distributed.elastic's ErrorHandler does, so that torchrun shows it as well."""
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    content = {"message": {"message": sentence, "extraInfo": {**more, "timestamp": str(int(time.time()))}}}
    with contextlib.suppress(OSError):  # the error itself matters more
        Path(path).write_text(json.dumps(content), encoding="utf-8")


def recorded_error(path: Path) -> str | None:
    """The sentence in an error file, or None if there is none."""
    try:
        message = json.loads(path.read_text(encoding="utf-8"))["message"]["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(message)
