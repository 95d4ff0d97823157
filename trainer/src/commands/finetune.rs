//! `trainer finetune`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use nadir_formats::write_npy;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::device::DeviceArgs;
use super::labelled::{Labelled, LabelledArgs};
use super::{End, already_finished, end, not_negative, positive, provenance, read_model, write_encoder};
use crate::data::{Labels, NO_CLASS, Stream, fingerprint, fingerprint_of_rows, generator};
use crate::finetune::Recipe;
use crate::finetune::fit::{Examples, fit};
use crate::finetune::net::{ENCODER, Net, Trained};
use crate::probe::compare::greatest;
use crate::probe::metrics::{micro_average_precision, micro_f1, regression};
use crate::probe::{Confusion, share_of_labels};
use crate::run::{Run, fit_norm, stop_on_signals};

/// Train an encoder on with labels, and test it
///
/// The labels decide what is trained: for a class, several classes or numbers a tile a linear head on the embedding; for a class
/// or a number a pixel MMEarth's UNet. What is not given is as in MMEarth's downstream experiments: for tiles 100 epochs, steps of
/// 16 batches of 64, learning rate 2e-4 for 256 tiles a step, layer decay 0.9, weight decay 0.3, stochastic depth 0.1, labels
/// smoothed by 0.2; for pixels 200 epochs, the first 50 with the encoder held fixed, steps of 4 batches of 8, learning rate 1e-2
/// for 256, no layer decay and no smoothing. Small datasets get shorter steps. The model of the last epoch is tested; none is
/// chosen on the way.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  trainer finetune --model zepto.safetensors --tiles tiles.npy --labels labels.npy \
    --split split.npy --out runs/finetuned\n  trainer finetune --model zepto.safetensors --data m-cashew-plant \
    --normalise data --out runs/cashew"
)]
pub struct Finetune {
    /// The encoder to start from
    #[arg(long, value_name = "MODEL.safetensors")]
    model: PathBuf,

    #[command(flatten)]
    data: LabelledArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Share of the training labels in per cent, drawn by the seed
    #[arg(long, value_name = "SHARE", default_value_t = 100.0, value_parser = positive)]
    few_shot: f64,

    /// Epochs in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    epochs: Option<u64>,

    /// Epochs at the start in which only the head is trained
    #[arg(long, value_name = "N")]
    frozen_epochs: Option<u64>,

    /// Tiles whose gradient is computed at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Option<u32>,

    /// Batches in a step of the optimiser
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    accumulate: Option<u32>,

    /// Learning rate for 256 tiles a step; it grows in proportion, and falls along half a cosine to 1e-6
    #[arg(long, value_name = "RATE", value_parser = positive)]
    base_lr: Option<f64>,

    /// Decoupled weight decay of AdamW
    #[arg(long, value_name = "DECAY", value_parser = not_negative)]
    weight_decay: Option<f64>,

    /// What the learning rate is multiplied by with each layer towards the input
    #[arg(long, value_name = "FACTOR", value_parser = share)]
    layer_decay: Option<f64>,

    /// Chance that the last block leaves out its branch
    #[arg(long, value_name = "CHANCE", value_parser = share)]
    drop_path: Option<f64>,

    /// Share of a label that is spread over all classes
    #[arg(long, value_name = "SHARE", value_parser = share)]
    smoothing: Option<f64>,

    /// Turn and mirror the tiles at random (MMEarth does not)
    #[arg(long)]
    flips: bool,

    /// Seed of the head, the order, the stochastic depth and the labels drawn
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// The run folder: config.json, metrics.jsonl, loss.png, checkpoint.safetensors, results.json, predictions.npy (of the
    /// test tiles), head.safetensors and encoder.safetensors
    #[arg(long, value_name = "RUN")]
    out: PathBuf,

    /// Continue the run in the folder, from its checkpoint; the settings must be the same
    #[arg(long)]
    resume: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "is not a number".to_owned())?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("must be 0 to 1".into()) }
}

impl Finetune {
    pub(super) fn run(self) -> Result<End> {
        ensure!(self.few_shot <= 100.0, "--few-shot {}: must be at most 100", self.few_shot);
        ensure!(self.drop_path.is_none_or(|rate| rate < 1.0), "--drop-path 1: leaves nothing of the last block");
        let data = self.data.read()?;
        let (mut card, encoder) = read_model(&self.model, &self.device.open(None)?)?;
        let (tiles, bands, encoder) = data.for_model(&card, &encoder)?;
        let rows = share_of_labels(&data.labels, &data.split.train, self.few_shot / 100.0, self.seed);
        let recipe = self.recipe(&data.labels)?.fitted(rows.len());
        let mut random = generator(self.seed, Stream::Weights, 0);
        let side = tiles.shape[2];
        let net = Net::new(&encoder, &data.labels, &rows, tiles.len(), side, Trained::All, &mut random)?;

        let pixels = fingerprint(&tiles.pick(&rows));
        let mut settings = json!({
            "command": "finetune",
            "model": card.name,
            "embedding_space": card.embedding_space,
            "data": data.name,
            "pixels": pixels,
            "labels": data.labels.described(),
            "label_values": data.labels.fingerprint(),
            "tiles": {"train": rows.len(), "test": data.split.test.len()},
            "rows": {"train": fingerprint_of_rows(&rows), "test": fingerprint_of_rows(&data.split.test)},
            "bands": bands,
            "few_shot": self.few_shot,
        });
        if let (Some(settings), Value::Object(recipe)) = (settings.as_object_mut(), serde_json::to_value(&recipe)?) {
            settings.extend(recipe);
        }
        let run = Run::open(&self.out, &settings, self.resume)?;
        if already_finished(&run) {
            return Ok(End::Done);
        }
        stop_on_signals()?;
        let examples = Examples { tiles: &tiles, bands: &bands, labels: &data.labels, rows: &rows };
        let outcome = fit(&net, examples, &recipe, Some(&run), "fine-tuning")?;
        end(&run, outcome, || {
            let said = net.predict(&tiles, &bands, &data.split.test, "testing")?;
            let results = self.judge(&data, &said)?;
            let text = serde_json::to_string_pretty(&results)? + "\n";
            nadir_formats::write_atomic(&self.out.join("results.json"), text.as_bytes())?;
            self.write_head(&net)?;
            if net.pixels() {
                // The UNet trains the encoder's maps and has no use for its norm.
                fit_norm(net.encoder(), &tiles.pick(&rows), &bands)?;
            }
            card.architecture = *net.encoder().architecture();
            card.bands = bands.clone();
            let recipe = format!("finetune {} (space {})", serde_json::to_string(&recipe)?, card.embedding_space);
            card.provenance = provenance(format!("{}, {} tiles, pixels {pixels}", data.name, rows.len()), recipe);
            write_encoder(&run, net.encoder(), card)?;
            println!("{}", self.summary(&data, &results));
            Ok(())
        })
    }

    /// MMEarth's recipe with what was given in its place.
    fn recipe(&self, labels: &Labels) -> Result<Recipe> {
        let of = Recipe::of_labels(labels, self.seed);
        let kind = labels.described();
        if let Some(smoothing) = self.smoothing {
            let limit = match labels {
                Labels::Classes { .. } => 1.0,
                // From one half on a class that is there would count as one that is not.
                Labels::Multi { .. } => 0.5,
                _ => 0.0,
            };
            ensure!(smoothing <= limit, "--smoothing {smoothing}: must be at most {limit} for {kind}");
        }
        let held = matches!(labels, Labels::Map { .. } | Labels::NumberMap { .. });
        ensure!(!held || self.layer_decay.is_none(), "--layer-decay has no part in training a UNet ({kind})");
        let epochs = self.epochs.unwrap_or(of.epochs);
        // A shorter run keeps the share of frozen epochs.
        let frozen = of.frozen_epochs * epochs / of.epochs;
        Ok(Recipe {
            epochs,
            frozen_epochs: self.frozen_epochs.unwrap_or(frozen),
            batch: self.batch.map_or(of.batch, |n| n as usize),
            accumulate: self.accumulate.map_or(of.accumulate, |n| n as usize),
            base_lr: self.base_lr.unwrap_or(of.base_lr),
            weight_decay: self.weight_decay.unwrap_or(of.weight_decay),
            layer_decay: self.layer_decay.unwrap_or(of.layer_decay),
            drop_path: self.drop_path.unwrap_or(of.drop_path),
            smoothing: self.smoothing.unwrap_or(of.smoothing),
            flips: self.flips,
            ..of
        })
    }

    /// Compares the predictions for the test tiles with their labels, and writes `predictions.npy`.
    fn judge(&self, data: &Labelled, said: &[f32]) -> Result<Value> {
        let (test, tiles, side) = (&data.split.test, data.tiles.len(), data.tiles.shape[2]);
        let path = self.out.join("predictions.npy");
        let (n, outputs) = (test.len() as u64, data.labels.outputs());
        fn of<T: Copy>(all: &[T], tiles: usize, rows: &[usize]) -> Vec<T> {
            rows.iter().flat_map(|row| Labels::row(all, tiles, *row)).copied().collect()
        }
        Ok(match &data.labels {
            Labels::Classes { of: truth, names } => {
                let predicted: Vec<usize> = said.chunks_exact(outputs).map(greatest).collect();
                write_npy(&path, &[n], &predicted.iter().map(|c| *c as i64).collect::<Vec<_>>())?;
                let confusion = Confusion::new(outputs, of(truth, tiles, test), &predicted);
                json!({"accuracy": confusion.accuracy(), "recall": confusion.recall(), "classes": names,
                    "confusion": confusion.counts})
            }
            Labels::Multi { of: truth, names } => {
                write_npy(&path, &[n, outputs as u64], said)?;
                let (truth, scores) = (of(truth, tiles, test), said.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
                let predicted: Vec<bool> = scores.iter().map(|s| *s >= 0.0).collect();
                json!({"micro_f1": micro_f1(&truth, &predicted),
                    "micro_average_precision": micro_average_precision(&truth, &scores), "classes": names})
            }
            Labels::Map { of: truth, names } => {
                let predicted: Vec<u8> = said.chunks_exact(outputs).map(|row| greatest(row) as u8).collect();
                write_npy(&path, &[n, side as u64, side as u64], &predicted)?;
                let truth = of(truth, tiles, test);
                let known = || truth.iter().zip(&predicted).filter(|(t, _)| **t != NO_CLASS);
                let predicted: Vec<usize> = known().map(|(_, p)| usize::from(*p)).collect();
                let confusion = Confusion::new(outputs, known().map(|(t, _)| usize::from(*t)), &predicted);
                json!({"mean_iou": confusion.mean_iou(), "accuracy": confusion.accuracy(), "classes": names,
                    "confusion": confusion.counts})
            }
            Labels::Numbers { of: truth, names } => {
                write_npy(&path, &[n, outputs as u64], said)?;
                let truth = of(truth, tiles, test);
                let column = |all: &[f32], at: usize| all.iter().skip(at).step_by(outputs).copied().collect::<Vec<_>>();
                let each: Vec<Value> = (0..outputs)
                    .map(|at| {
                        let (rmse, r2) = regression(&column(&truth, at), &column(said, at));
                        json!({"name": names[at], "rmse": rmse, "r2": r2})
                    })
                    .collect();
                json!({ "columns": each })
            }
            Labels::NumberMap { of: truth } => {
                write_npy(&path, &[n, side as u64, side as u64], said)?;
                let (rmse, r2) = regression(&of(truth, tiles, test), said);
                json!({"rmse": rmse, "r2": r2})
            }
        })
    }

    /// `head.safetensors`: the head's tensors, which have no place in an encoder's file.
    fn write_head(&self, net: &Net) -> Result<()> {
        let mut head = net.params().export()?;
        head.retain(|name, _| !name.starts_with(ENCODER));
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = head
            .into_iter()
            .map(|(name, array)| (name, array.shape, array.data.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        let file = safetensors::serialize(views, None)?;
        Ok(nadir_formats::write_atomic(&self.out.join("head.safetensors"), &file)?)
    }

    /// The results in a line.
    fn summary(&self, data: &Labelled, results: &Value) -> String {
        let tiles = data.split.test.len();
        let per_cent = |key: &str| 100.0 * results[key].as_f64().unwrap_or(f64::NAN);
        let numbers = |v: &Value| {
            let of = |key: &str| v[key].as_f64().unwrap_or(f64::NAN);
            format!("RMSE {:.4}, R2 {:.3}", of("rmse"), of("r2"))
        };
        let figures = match &data.labels {
            Labels::Classes { .. } => format!("accuracy {:.1} %", per_cent("accuracy")),
            Labels::Multi { .. } => format!(
                "micro F1 {:.1} %, micro average precision {:.1} %",
                per_cent("micro_f1"),
                per_cent("micro_average_precision")
            ),
            Labels::Map { .. } => {
                format!("mean IoU {:.1} %, accuracy {:.1} %", per_cent("mean_iou"), per_cent("accuracy"))
            }
            Labels::Numbers { .. } => {
                let columns = results["columns"].as_array().map_or(&[][..], Vec::as_slice);
                let each = columns.iter().map(|c| format!("{} {}", c["name"].as_str().unwrap_or("?"), numbers(c)));
                each.collect::<Vec<_>>().join("; ")
            }
            Labels::NumberMap { .. } => numbers(results),
        };
        format!("{tiles} test tiles: {figures}")
    }
}
