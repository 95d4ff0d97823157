//! What the demo found, as text, as JSON, and for the report.

use std::fmt::{self, Write};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::baseline::Kept;
use super::children::number;

/// How well classes can be read from embeddings, 0 to 1.
#[derive(Clone, Copy, Debug)]
pub struct Accuracy {
    /// By nearest neighbours.
    pub neighbours: f64,
    /// By logistic regression.
    pub logistic: f64,
}

impl Accuracy {
    /// From what `trainer probe --json` printed.
    pub(super) fn of(value: &Value) -> Result<Self> {
        Ok(Self { neighbours: number(value, "knn.accuracy")?, logistic: number(value, "logistic.accuracy")? })
    }
}

impl fmt::Display for Accuracy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (neighbours, logistic) = (100.0 * self.neighbours, 100.0 * self.logistic);
        write!(f, "k-NN {neighbours:.1} %, logistic regression {logistic:.1} %")
    }
}

/// What became of one tile.
#[derive(Clone, Debug)]
pub struct Fate {
    /// `nothing`, `record`, `code`, `embedding` or `tile`.
    pub rung: String,
    /// Bytes that it took.
    pub bytes: u64,
    /// Margin of the nearest wanted prototype over the nearest other one.
    pub score: Option<f64>,
    /// Why.
    pub reason: String,
}

impl Fate {
    /// Of a tile about which nothing went down.
    pub(super) fn left_behind() -> Self {
        Self { rung: "nothing".into(), bytes: 0, score: None, reason: "not in the outbox".into() }
    }

    /// From a line of `triage show --json`.
    pub(super) fn of(value: &Value) -> Result<Self> {
        let text = |key: &str| value[key].as_str().map(String::from).with_context(|| format!("no {key} in {value}"));
        let bytes = value["bytes"].as_u64().with_context(|| format!("no bytes in {value}"))?;
        Ok(Self { rung: text("rung")?, bytes, score: value["score"].as_f64(), reason: text("reason")? })
    }
}

/// What the emulated microcontroller did.
#[derive(Clone, Debug)]
pub enum Emulated {
    /// It could not run here, and why.
    Skipped(String),
    /// It ran.
    Ran {
        /// Embeddings that are the host's, byte for byte.
        equal: usize,
        /// Embeddings compared.
        embedded: usize,
        /// Mean instructions of one embedding.
        instructions: f64,
        /// Bytes of static RAM.
        ram: u64,
        /// Bytes of flash.
        flash: u64,
    },
}

impl fmt::Display for Emulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Emulated::Skipped(why) => write!(f, "SKIPPED: {why}"),
            Emulated::Ran { equal, embedded, instructions, .. } => {
                write!(
                    f,
                    "{equal} of {embedded} embeddings equal to the byte, {:.0} M instructions each",
                    instructions / 1e6
                )
            }
        }
    }
}

/// Everything that the demo found.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Name of the class of interest.
    pub class: String,
    /// Tiles learned from.
    pub train_tiles: usize,
    /// Bytes of all tiles of the stream.
    pub stream_bytes: usize,
    /// Bytes that may go down.
    pub budget: usize,
    /// Bytes that go down.
    pub outbox_bytes: usize,
    /// Bytes of the int8 model file.
    pub model_bytes: usize,
    /// Accuracy of the float encoder.
    pub float: Accuracy,
    /// Accuracy of the int8 model.
    pub int8: Accuracy,
    /// Mean cosine between int8 and float embeddings of the stream.
    pub cosine: f64,
    /// The smallest of them.
    pub cosine_min: f64,
    /// Kept by triage.
    pub ours: Kept,
    /// Kept by first-in-first-out.
    pub fifo: Kept,
    /// Mean number of wanted tiles that a random choice keeps.
    pub random: f64,
    /// The microcontroller's part.
    pub emulated: Emulated,
    /// One entry a tile of the stream.
    pub fates: Vec<Fate>,
}

impl Summary {
    /// Bytes down against all tiles, 0 to 1.
    pub fn share_down(&self) -> f64 {
        self.outbox_bytes as f64 / self.stream_bytes as f64
    }

    /// The summary as the demo prints it.
    pub fn text(&self) -> String {
        let (ours, all) = (self.ours, self.ours.all_wanted);
        let share = |kept: f64| format!("{kept:4.1} of {all}  ({:.0} %)", 100.0 * kept / all.max(1) as f64);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "accuracy   float  {}", self.float);
        let _ = writeln!(text, "           int8   {}", self.int8);
        let _ = writeln!(text, "cosine     int8 to float {:.4}, at least {:.4}", self.cosine, self.cosine_min);
        let _ = writeln!(
            text,
            "bytes down {} of {} ({:.1} %), all {} tiles reported on",
            self.outbox_bytes,
            self.stream_bytes,
            100.0 * self.share_down(),
            self.fates.iter().filter(|fate| fate.rung != "nothing").count()
        );
        let _ = writeln!(text, "{} tiles kept in full", self.class);
        let _ = writeln!(text, "           triage              {}", share(ours.wanted as f64));
        let _ = writeln!(text, "           first in, first out {}", share(self.fifo.wanted as f64));
        let _ = writeln!(text, "           random, mean        {}", share(self.random));
        let _ = write!(text, "Cortex-M7  {}", self.emulated);
        text
    }

    /// The summary for programs.
    pub fn json(&self) -> Value {
        let accuracy = |a: Accuracy| json!({ "knn": a.neighbours, "logistic": a.logistic });
        let emulated = match &self.emulated {
            Emulated::Skipped(why) => json!({ "skipped": why }),
            Emulated::Ran { equal, embedded, instructions, ram, flash } => json!({
                "equal": equal, "embedded": embedded, "instructions": instructions, "ram": ram, "flash": flash,
            }),
        };
        json!({
            "wanted_class": self.class,
            "accuracy": { "float": accuracy(self.float), "int8": accuracy(self.int8) },
            "cosine_mean": self.cosine,
            "cosine_min": self.cosine_min,
            "stream_bytes": self.stream_bytes,
            "budget_bytes": self.budget,
            "outbox_bytes": self.outbox_bytes,
            "wanted": self.ours.all_wanted,
            "wanted_kept": {
                "triage": self.ours.wanted, "first_in_first_out": self.fifo.wanted, "random_mean": self.random,
            },
            "emulated": emulated,
        })
    }
}
