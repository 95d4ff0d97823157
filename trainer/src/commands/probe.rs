//! `trainer probe`.

mod compare;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use nadir_formats::{Matrix, read_integers};
use serde_json::json;

use super::labelled::LabelledArgs;
use crate::chart;
use crate::data::names;
use crate::probe::compare::STRENGTHS;
use crate::probe::{Confusion, Logistic, Split, Standardiser, nearest_neighbours};

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

/// The logistic regression's outcome.
struct Regression {
    c: f64,
    validation: Option<f64>,
    gradient: f64,
    confusion: Confusion,
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

        let mut distinct = raw.clone();
        distinct.sort_unstable();
        distinct.dedup();
        ensure!(distinct.len() > 1, "{shown}: all labels are {}", distinct[0]);
        let labels: Vec<usize> = raw.iter().map(|l| distinct.binary_search(l).unwrap_or(0)).collect();
        let names = match &self.data.names {
            Some(list) => names("names", list)?,
            None => distinct.iter().map(i64::to_string).collect(),
        };
        ensure!(names.len() == distinct.len(), "--names gives {} names for {} classes", names.len(), distinct.len());

        let truth = || split.test.iter().map(|&i| labels[i]);
        let predicted = nearest_neighbours(&e, &labels, &split.train, &split.test, self.k as usize);
        let neighbours = Confusion::new(names.len(), truth(), &predicted);
        let regression = self.regression(&e, &labels, &split, names.len());
        if let Some(path) = &self.save_plot {
            let title = format!("Logistic regression: {:.1} % right", 100.0 * regression.confusion.accuracy());
            let picture = chart::confusion(&regression.confusion, &names, &title);
            nadir_formats::write_atomic(path, &picture.png()?)?;
        }
        if self.json {
            println!("{}", self.object(&e, &split, &names, &neighbours, &regression));
        } else {
            self.table(&e, &split, &names, &neighbours, &regression);
        }
        Ok(())
    }

    fn regression(&self, e: &Matrix, labels: &[usize], split: &Split, classes: usize) -> Regression {
        let standardiser = Standardiser::fit(e, &split.train);
        let [train, validation, test] =
            [&split.train, &split.validation, &split.test].map(|rows| standardiser.apply(e, rows));
        let of = |rows: &[usize]| rows.iter().map(|&i| labels[i]).collect::<Vec<_>>();
        let strengths = match self.c {
            Some(c) => vec![c],
            None if split.validation.is_empty() => vec![1.0],
            None => STRENGTHS.to_vec(),
        };
        let mut best: Option<(Option<f64>, f64, Logistic)> = None;
        let mut last: Option<Logistic> = None;
        for c in strengths {
            let fit = Logistic::fit(&train, e.columns, &of(&split.train), classes, c, last.as_ref());
            let accuracy = (!validation.is_empty())
                .then(|| Confusion::new(classes, of(&split.validation), &fit.predict(&validation)).accuracy());
            // Of equally good ones the strongest penalty stays.
            if best.as_ref().is_none_or(|(before, ..)| accuracy > *before) {
                best = Some((accuracy, c, fit.clone()));
            }
            last = Some(fit);
        }
        let (validation, c, fit) = best.unwrap_or_else(|| unreachable!("there is at least one strength"));
        let confusion = Confusion::new(classes, of(&split.test), &fit.predict(&test));
        Regression { c, validation, gradient: fit.gradient, confusion }
    }

    fn object(
        &self,
        e: &Matrix,
        split: &Split,
        names: &[String],
        neighbours: &Confusion,
        regression: &Regression,
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
                "accuracy": regression.confusion.accuracy(),
                "recall": regression.confusion.recall(),
                "confusion": regression.confusion.counts,
            },
        })
    }

    fn table(&self, e: &Matrix, split: &Split, names: &[String], neighbours: &Confusion, regression: &Regression) {
        let rows = [split.train.len(), split.validation.len(), split.test.len()];
        println!("{} dimensions; rows: train {}, validation {}, test {}", e.columns, rows[0], rows[1], rows[2]);
        let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0).max("all".len());
        let knn = format!("{}-NN", self.k);
        println!("\n{:width$}  {:>6}  {knn:>6}  {:>8}", "recall %", "tiles", "logistic", width = width.max(8));
        let width = width.max(8);
        let share = |r: Option<f64>| r.map_or("-".into(), |r| format!("{:.1}", 100.0 * r));
        let recalls = neighbours.recall().into_iter().zip(regression.confusion.recall());
        for ((name, (a, b)), row) in names.iter().zip(recalls).zip(&regression.confusion.counts) {
            println!("{name:width$}  {:>6}  {:>6}  {:>8}", row.iter().sum::<u64>(), share(a), share(b));
        }
        let all = [neighbours, &regression.confusion].map(|c| share(Some(c.accuracy())));
        println!("{:width$}  {:>6}  {:>6}  {:>8}", "accuracy", split.test.len(), all[0], all[1]);
        let how = match (self.c, regression.validation) {
            (Some(_), _) => "as given".to_owned(),
            (None, Some(v)) => format!("by validation, where it reaches {:.1} %", 100.0 * v),
            (None, None) => "there is no validation split".to_owned(),
        };
        println!("\nlogistic regression: C {} ({how}), gradient {:.0e}", regression.c, regression.gradient);
    }
}
