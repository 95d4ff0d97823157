//! Benchmarks of Nadir: `cargo bench` measures the encoder, `benches/gpu/run.sh` the trainer on a GPU; committed runs are in `benches/runs/`.
