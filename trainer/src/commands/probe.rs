//! `trainer probe`.

mod compare;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;
use nadir_formats::{Matrix, read_integers};
use serde_json::json;

use super::labelled::LabelledArgs;
use crate::chart;
use crate::data::{Labels, names};
use crate::probe::compare::{Kind, Score, Task};
use crate::probe::{Confusion, Split};

/// Measure how well classes can be read from embeddings
///
/// Two probes are trained on the rows of split 0 and tested on those of split 2: the majority of the nearest neighbours in
/// cosine similarity (of equal votes the nearest wins), and a logistic regression on standardised embeddings with an L2
/// penalty, fitted to convergence. Its strength C (as in scikit-learn) is chosen by the accuracy (of several classes a tile, F1) on split 1 where there
/// is one, among 0.001, 0.01, 0.1, 1 and 10; otherwise it is 1.
///
/// With --embeddings one file of them is measured and the classes are listed one by one. With --model any number of models are
/// compared with each other, with random weights and with band statistics, on several shares of the labels and over seeds;
/// --probes mmearth adds the linear probe of MMEarth's paper, which is far from converged. docs/probes.md explains all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  trainer probe --embeddings e.npy --labels labels.npy --split split.npy\n  \
    trainer probe --model models/zepto-rgb.safetensors --model mine=runs/1/encoder.safetensors \\\n    \
    --tiles tiles.npy --labels labels.npy --split split.npy --few-shot 1,10,100 --out probes")]
pub struct Probe {
    /// Embeddings: .npy of f32 [tiles, dimension]
    #[arg(long, value_name = "E.npy")]
    embeddings: Option<PathBuf>,

    #[command(flatten)]
    compare: compare::CompareArgs,

    #[command(flatten)]
    data: LabelledArgs,

    /// Number of neighbours
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,

    /// Strength C of the logistic regression, in place of the choice by validation
    #[arg(long, value_parser = super::positive)]
    c: Option<f64>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,

    /// Write the confusion matrix of the logistic regression as a picture
    #[arg(long, value_name = "PNG", requires = "embeddings")]
    save_plot: Option<PathBuf>,
}

impl Probe {
    pub(super) fn run(self) -> Result<()> {
        let Some(path) = &self.embeddings else {
            ensure!(!self.compare.models.is_empty(), "give --embeddings, or --model once or more");
            return self.compare.run(&self.data.read()?, self.k as usize, self.c, self.json);
        };
        let e = Matrix::read(path)?;
        ensure!(e.data.iter().all(|v| v.is_finite()), "{}: holds values that are not finite", path.display());
        let path = self.data.path("labels", &self.data.labels)?;
        let raw = read_integers(&path)?;
        let shown = path.display();
        ensure!(raw.len() == e.rows, "{shown}: has {} labels for {} embeddings", raw.len(), e.rows);
        let split = self.data.read_split(e.rows)?;

        let names = self.data.names.as_deref().map(|list| names("names", list)).transpose()?;
        let labels = Labels::classes(&raw, names.as_deref(), &shown.to_string())?;
        let task = Task { labels: &labels, split: &split, k: self.k as usize, c: self.c };
        let [neighbours, regression] = [Kind::Knn, Kind::Logistic].map(|kind| task.probe(kind, &e, 1.0, 1));
        let (neighbours, regression) = (neighbours?, regression?);
        let (Some(of_neighbours), Some(of_regression)) = (&neighbours.confusion, &regression.confusion) else {
            bail!("{shown}: are no classes");
        };
        let confusions = [of_neighbours, of_regression];
        let names = labels.names();
        if let Some(path) = &self.save_plot {
            let title = format!("Logistic regression: {:.1} % right", 100.0 * regression.score);
            let picture = chart::confusion(of_regression, names, &title);
            nadir_formats::write_atomic(path, &picture.png()?)?;
        }
        if self.json {
            println!("{}", self.object(&e, &split, names, confusions, &regression));
        } else {
            self.table(&e, &split, names, confusions, &regression);
        }
        Ok(())
    }

    fn object(
        &self,
        e: &Matrix,
        split: &Split,
        names: &[String],
        [neighbours, logistic]: [&Confusion; 2],
        regression: &Score,
    ) -> serde_json::Value {
        json!({
            "embeddings": self.embeddings,
            "dimension": e.columns,
            "rows": {"train": split.train.len(), "validation": split.validation.len(), "test": split.test.len()},
            "classes": names,
            "knn": {
                "k": self.k,
                "accuracy": neighbours.accuracy(),
                "recall": neighbours.recall(),
                "confusion": neighbours.counts,
            },
            "logistic": {
                "c": regression.c,
                "validation_accuracy": regression.validation,
                "gradient": regression.gradient,
                "accuracy": logistic.accuracy(),
                "recall": logistic.recall(),
                "confusion": logistic.counts,
            },
        })
    }

    fn table(&self, e: &Matrix, split: &Split, names: &[String], confusions: [&Confusion; 2], regression: &Score) {
        let rows = [split.train.len(), split.validation.len(), split.test.len()];
        println!("{} dimensions; rows: train {}, validation {}, test {}", e.columns, rows[0], rows[1], rows[2]);
        let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0).max("all".len());
        let knn = format!("{}-NN", self.k);
        println!("\n{:width$}  {:>6}  {knn:>6}  {:>8}", "recall %", "tiles", "logistic", width = width.max(8));
        let width = width.max(8);
        let share = |r: Option<f64>| r.map_or("-".into(), |r| format!("{:.1}", 100.0 * r));
        let [neighbours, logistic] = confusions;
        let recalls = neighbours.recall().into_iter().zip(logistic.recall());
        for ((name, (a, b)), row) in names.iter().zip(recalls).zip(&logistic.counts) {
            println!("{name:width$}  {:>6}  {:>6}  {:>8}", row.iter().sum::<u64>(), share(a), share(b));
        }
        let all = confusions.map(|c| share(Some(c.accuracy())));
        println!("{:width$}  {:>6}  {:>6}  {:>8}", "accuracy", split.test.len(), all[0], all[1]);
        let how = match (self.c, regression.validation) {
            (Some(_), _) => "as given".to_owned(),
            (None, Some(v)) => format!("by validation, where it reaches {:.1} %", 100.0 * v),
            (None, None) => "there is no validation split".to_owned(),
        };
        let (c, gradient) = (regression.c.unwrap_or_default(), regression.gradient.unwrap_or_default());
        println!("\nlogistic regression: C {c} ({how}), gradient {gradient:.0e}");
    }
}
