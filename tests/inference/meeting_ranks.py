"""Run by a test: two processes that find each other, after a stranger has tried to take the port that they will meet at."""

from __future__ import annotations

import errno
import os
import socket

from nemo_steerlm.inference.ranks import Ranks

if __name__ == "__main__":
    ranks = Ranks(devices=2, nodes=1)
    if ranks.rank == 0:
        try:
            socket.create_server(("", int(os.environ["MASTER_PORT"])))
        except OSError as error:
            print(error.errno == errno.EADDRINUSE)
    import torch

    torch.distributed.init_process_group("gloo")
    numbers = [torch.zeros(1), torch.zeros(1)]
    torch.distributed.all_gather(numbers, torch.tensor([float(ranks.rank)]))
    torch.distributed.barrier()
    if ranks.rank == 0:
        print([int(number) for number in numbers])
        ranks.close()
