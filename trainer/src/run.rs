//! The run folder: everything that a training writes, and the loop that it goes through.
//!
//! | file | what |
//! | --- | --- |
//! | `config.json` | all settings, written first |
//! | `run.toml` | the command's options, for `--config` |
//! | `metrics.jsonl` | one JSON object per logged interval (`"kind":"interval"`) and per epoch (`"kind":"epoch"`) |
//! | `loss.png` | the loss curves, drawn anew each epoch |
//! | `checkpoint.safetensors` | parameters, optimiser state and position; replaced whole, each epoch, every some minutes and on interruption |
//! | `teacher.npy` | of a distillation: the teacher's embeddings of the tiles in use |
//! | `encoder.safetensors` | the finished encoder with its model card |

mod checkpoint;
mod finish;
mod gradients;
mod progress;
mod training;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use checkpoint::{Checkpoint, Position, Sums};
pub(crate) use finish::column_statistics;
pub use finish::{embed_tiles, fit_norm, fit_norm_to, made_by};
pub(crate) use gradients::Gradients;
pub use progress::{Progress, clock};
pub use training::{Objective, Outcome, Schedule, measure, stop_on_signals, train};
pub(crate) use training::{leave_if_asked, stopping};

/// An open run folder.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Whether the means are over a whole epoch or a shorter interval.
    pub kind: Span,
    /// Epochs done, with fraction.
    pub epoch: f64,
    /// Steps done.
    pub step: u64,
    /// Mean of what is minimised.
    pub loss: f64,
    /// Mean loss of every task, before weighting.
    pub tasks: BTreeMap<String, f64>,
    /// Mean norm of the steps' gradients, over all parameters.
    pub gradient_norm: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Tiles trained on per second of wall time, over the span or the part of it since the start or resume.
    pub tiles_per_second: f64,
}

/// What [`Metrics`] are the means over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Span {
    /// Some steps.
    Interval,
    /// An epoch.
    Epoch,
}

impl Run {
    /// Starts a run in `folder` with `config`, or, if `resume`, opens the run that is there.
    ///
    /// Fails if a fresh run would go into a folder with content, and if the run to resume has other settings.
    pub fn open<C: Serialize>(folder: &Path, config: &C, resume: bool) -> Result<Self> {
        let run = Self { folder: folder.to_owned() };
        let shown = folder.display();
        let path = run.config_path();
        if resume {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("{shown}: nothing to resume: cannot read {}", path.display()))?;
            let before = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            if let Some(difference) = difference(&before, &serde_json::to_value(config)?) {
                bail!("{shown}: cannot resume with other settings: {difference}");
            }
            run.remove_parts()?;
            return Ok(run);
        }
        std::fs::create_dir_all(folder).with_context(|| shown.to_string())?;
        run.remove_parts()?;
        let mut content = std::fs::read_dir(folder).with_context(|| shown.to_string())?;
        ensure!(content.next().is_none(), "{shown}: is not empty; add --resume to continue the run, or choose another");
        let mut text = serde_json::to_string_pretty(config)?;
        text.push('\n');
        nadir_formats::write_atomic(&path, text.as_bytes())?;
        Ok(run)
    }

    /// Removes what a killed run was writing: `NAME.PROCESS.part`, where NAME is a file of a run.
    fn remove_parts(&self) -> Result<()> {
        const NAMES: [&str; 7] = [
            "config.json",
            "run.toml",
            "metrics.jsonl",
            "loss.png",
            "checkpoint.safetensors",
            "teacher.npy",
            "encoder.safetensors",
        ];
        let shown = || self.folder.display().to_string();
        for entry in std::fs::read_dir(&self.folder).with_context(shown)? {
            let entry = entry.with_context(shown)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let of_run = name.strip_suffix(".part").and_then(|n| n.rsplit_once('.'));
            if of_run.is_some_and(|(name, _)| NAMES.contains(&name)) {
                let path = entry.path();
                std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Writes `run.toml`, the options with which the command repeats the run, unless it is there.
    pub fn write_options(&self, toml: &str) -> Result<()> {
        let path = self.folder.join("run.toml");
        if !path.exists() {
            nadir_formats::write_atomic(&path, toml.as_bytes())?;
        }
        Ok(())
    }

    /// Opens a run only to look at it.
    pub fn look(folder: &Path) -> Result<Self> {
        let run = Self { folder: folder.to_owned() };
        ensure!(run.config_path().is_file(), "{}: is no run folder: it has no config.json", folder.display());
        Ok(run)
    }

    /// `config.json`.
    pub fn config_path(&self) -> PathBuf {
        self.folder.join("config.json")
    }

    /// `metrics.jsonl`.
    pub fn metrics_path(&self) -> PathBuf {
        self.folder.join("metrics.jsonl")
    }

    /// `loss.png`.
    pub fn chart_path(&self) -> PathBuf {
        self.folder.join("loss.png")
    }

    /// `checkpoint.safetensors`.
    pub fn checkpoint_path(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    /// `teacher.npy`.
    pub fn teacher_path(&self) -> PathBuf {
        self.folder.join("teacher.npy")
    }

    /// `encoder.safetensors`; it exists when the run is finished.
    pub fn encoder_path(&self) -> PathBuf {
        self.folder.join("encoder.safetensors")
    }

    /// Whether the run is finished.
    pub fn finished(&self) -> bool {
        self.encoder_path().exists()
    }

    /// All metrics so far, none if there is no such file.
    ///
    /// A last line without its end, as a crash may leave it, is left out.
    pub fn metrics(&self) -> Result<Vec<Metrics>> {
        Ok(self.metrics_lines()?.into_iter().map(|(_, metrics)| metrics).collect())
    }

    /// The metrics with the lines that they stand on.
    fn metrics_lines(&self) -> Result<Vec<(String, Metrics)>> {
        let path = self.metrics_path();
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse = |(at, line): (usize, &str)| {
            let metrics = serde_json::from_str(line);
            Ok((line.to_owned(), metrics.with_context(|| format!("{}: line {}", path.display(), at + 1))?))
        };
        whole.lines().enumerate().map(parse).collect()
    }

    /// Appends a line to `metrics.jsonl`.
    pub(crate) fn log(&self, metrics: &Metrics) -> Result<()> {
        let path = self.metrics_path();
        let mut line = serde_json::to_string(metrics)?;
        line.push('\n');
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        file.as_mut()
            .map_err(|e| anyhow!("{e}"))
            .and_then(|file| Ok(file.write_all(line.as_bytes())?))
            .with_context(|| path.display().to_string())
    }

    /// Cuts off the metrics that were written after step `step`.
    pub(crate) fn rewind(&self, step: u64) -> Result<()> {
        let kept = self.metrics_lines()?.into_iter().filter(|(_, metrics)| metrics.step <= step);
        let text: String = kept.map(|(line, _)| line + "\n").collect();
        Ok(nadir_formats::write_atomic(&self.metrics_path(), text.as_bytes())?)
    }

    /// Draws `loss.png`.
    pub(crate) fn draw(&self) -> Result<()> {
        let chart = crate::chart::losses(&self.metrics()?);
        Ok(nadir_formats::write_atomic(&self.chart_path(), &chart.png()?)?)
    }
}

/// The first setting in which two configurations differ, in words.
fn difference(before: &Value, now: &Value) -> Option<String> {
    let none = serde_json::Map::new();
    let (a, b) = (before.as_object().unwrap_or(&none), now.as_object().unwrap_or(&none));
    a.keys().chain(b.keys()).find_map(|key| {
        let (was, is) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
        (was != is).then(|| format!("{key} is {is}, the run has {was}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn folders_keep_their_settings() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let open = |lr: f64, resume| Run::open(&folder, &json!({"epochs": 3, "lr": lr}), resume);
        assert!(open(0.1, true).unwrap_err().to_string().contains("nothing to resume"));
        let run = open(0.1, false).unwrap();
        assert!(!run.finished());
        assert!(open(0.1, false).unwrap_err().to_string().contains("is not empty"));
        assert!(open(0.1, true).is_ok());
        let error = open(0.2, true).unwrap_err().to_string();
        assert!(error.contains("lr is 0.2, the run has 0.1"), "{error}");
    }

    #[test]
    fn metrics_are_rewound() {
        let dir = tempfile::tempdir().unwrap();
        let run = Run::open(&dir.path().join("run"), &json!({}), false).unwrap();
        for step in 1..=4 {
            run.log(&Metrics {
                kind: Span::Interval,
                epoch: 0.1,
                step,
                loss: 1.0 / 3.0,
                tasks: BTreeMap::from([("tiles".into(), 0.1)]),
                gradient_norm: 0.2,
                lr: 1e-3,
                tiles_per_second: 70.0,
            })
            .unwrap();
        }
        let before = run.metrics().unwrap();
        let mut text = std::fs::read_to_string(run.metrics_path()).unwrap();
        text.push_str("{\"kind\":\"int");
        std::fs::write(run.metrics_path(), text).unwrap();
        run.rewind(3).unwrap();
        assert_eq!(run.metrics().unwrap(), before[..3]);
    }
}
