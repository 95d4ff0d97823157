//! Two processes with half of every batch each against one process with all of it, over MPI. Run by
//! `trainer/tests/scripts/two_processes.sh`.
#![cfg(feature = "mpi")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Desk, relative};
use safetensors::SafeTensors;
use serde_json::Value;

const STEPS: usize = 6;

/// Arguments of a short run on the fixture, whose tiles lack different modalities.
fn arguments(out: &str) -> String {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mmearth/data_100k_v001");
    format!(
        "pretrain --data {} --crop 16 --dims 8,8,8,16 --depths 1,1,1,1 --decoder-dim 16 --batch 4 --patch 8 --flips \
         --epochs {STEPS} --logs-per-epoch 1 --seed 3 --out @{out}",
        data.display()
    )
}

/// `trainer` in two processes.
fn in_two(desk: &Desk, arguments: &str) -> std::process::Output {
    let one = desk.command(arguments);
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "-n", "2"]).arg(one.get_program()).args(one.get_args());
    command.env("RAYON_NUM_THREADS", "1").output().unwrap()
}

/// The numbers of every step: loss, tasks' losses, norm of the gradient.
fn steps(desk: &Desk, run: &str) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(desk.path(run).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let numbers = |line: Value| {
        let mut all = vec![line["loss"].as_f64().unwrap(), line["gradient_norm"].as_f64().unwrap()];
        all.extend(line["tasks"].as_object().unwrap().values().map(|v| v.as_f64().unwrap()));
        all
    };
    lines.filter(|line| line["kind"] == "epoch").map(numbers).collect()
}

/// All values of a checkpoint in the order of their names.
fn checkpoint(desk: &Desk, run: &str) -> Vec<f32> {
    let bytes = std::fs::read(desk.path(run).join("checkpoint.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = file.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    tensors.iter().flat_map(|(_, tensor)| floats(tensor.data())).collect()
}

#[test]
fn two_processes_do_what_one_does() {
    let desk = Desk::empty();
    desk.succeed(&arguments("one"));
    let two = in_two(&desk, &arguments("two"));
    assert!(two.status.success(), "{}", String::from_utf8_lossy(&two.stderr));
    let (one, two) = (steps(&desk, "one"), steps(&desk, "two"));
    assert!(one.len() >= STEPS && one.len() == two.len(), "{} and {} epochs", one.len(), two.len());
    let mut worst = 0f64;
    for (one, two) in one.iter().zip(&two) {
        for (a, b) in one.iter().zip(two) {
            worst = worst.max((a - b).abs() / a.abs().max(1.0));
        }
    }
    let parameters = relative(&checkpoint(&desk, "two"), &checkpoint(&desk, "one"));
    println!("losses and norms differ by {worst:.1e}, the checkpoints by {parameters:.1e}");
    assert!(worst <= 1e-6, "losses or norms differ by {worst:.1e}");
    assert!(parameters <= 1e-6, "the checkpoints differ by {parameters:.1e}");
}

/// Process 0 cannot make the folder; the other, which would wait for it for ever, ends too.
#[test]
fn an_error_in_one_process_ends_both() {
    let desk = Desk::empty();
    std::fs::write(desk.path("taken"), "a file").unwrap();
    let output = in_two(&desk, &arguments("taken"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("trainer: process 0 of 2") && text.contains("taken"), "{text}");
}

#[test]
fn a_batch_must_be_shared_evenly() {
    let desk = Desk::empty();
    let output = in_two(&desk, &arguments("odd").replace("--batch 4", "--batch 3"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("a batch of 3 tiles") && text.contains("--batch"), "{text}");
}
