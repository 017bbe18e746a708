"""``make bench``: every benchmark of this folder, one after the other."""

from tests.benchmarks import bench_operator, bench_scoring, bench_serving, bench_start, bench_steering, bench_training

if __name__ == "__main__":
    bench_training.main()
    bench_start.main()
    bench_scoring.main()
    bench_serving.main()
    bench_steering.main()
    bench_operator.main()
