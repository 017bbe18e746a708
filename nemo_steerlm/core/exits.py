"""Where exceptions become exit codes: the end of every command, script and module that runs by itself."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

from nemo_steerlm.core.errors import SteerLMError


def run_and_exit(function: Callable[[], Any], program: str = "steerlm") -> None:
    """Call ``function``; on an error of this package print one line to stderr and exit with its code. Ctrl-C exits 130.

    The only place where exceptions become exit codes.
    """
    try:
        function()
    except SteerLMError as error:
        sys.stderr.write(f"{program}: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    finally:
        # An interpreter that ends looks for garbage once more: four seconds of CPU after NeMo's imports, for memory that goes anyway.
        gc.freeze()
