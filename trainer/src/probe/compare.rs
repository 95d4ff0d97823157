//! The probes of one row of features, on shares of the labels and over seeds.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use nadir_formats::probe::strengths;
use nadir_formats::{BandCard, Matrix, Tiles};
use serde::Serialize;

use super::metrics::{micro_average_precision, micro_f1};
use super::{
    Confusion, Logistic, LogisticEach, Split, Standardiser, nearest_neighbours, neighbour_shares, share_of_labels,
};
use crate::data::{Labels, Stream, generator};
use crate::encoder::Encoder;
use crate::finetune::Recipe;
use crate::finetune::fit::{Examples, fit};
use crate::finetune::net::{Net, Trained};

/// A way to read labels from features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The nearest neighbours in cosine similarity
    Knn,
    /// Logistic regression, fitted to convergence
    Logistic,
    /// MMEarth's linear probe: 100 epochs of few, small steps of a new head, with stochastic depth in the encoder
    Mmearth,
}

/// What all rows of a table share.
pub struct Task<'a> {
    /// The tiles' labels: classes, or several classes.
    pub labels: &'a Labels,
    /// Which tiles train, validate and test.
    pub split: &'a Split,
    /// Number of neighbours.
    pub k: usize,
    /// The strength C of the logistic regression; nothing lets validation choose.
    pub c: Option<f64>,
}

/// How good one probe of one set of labels is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Accuracy, or micro F1 at a threshold of one half.
    pub score: f64,
    /// Micro average precision, of several classes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_precision: Option<f64>,
    /// Seed of the labels drawn, and of what is random in the probe.
    pub seed: u64,
    /// Tiles trained on.
    pub rows: usize,
    /// The strength that was chosen, of the logistic regression only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub c: Option<f64>,
    /// The score on the validation split by which it was chosen, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<f64>,
    /// The norm of what is left of the gradient, of the logistic regression of one class a tile only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient: Option<f64>,
    /// Hits and misses, of one class a tile only.
    #[serde(skip)]
    pub confusion: Option<Confusion>,
}

/// The classes said of the test tiles, or how sure of each class.
enum Said {
    Classes(Vec<usize>),
    /// Scores, and the score from which on a class is said.
    Scores(Vec<f64>, f64),
}

impl Task<'_> {
    /// The probe `kind` (not [`Kind::Mmearth`]) of the features `e`, with the `share` of labels that `seed` draws.
    ///
    /// # Errors
    /// If the labels are no classes of tiles.
    pub fn probe(&self, kind: Kind, e: &Matrix, share: f64, seed: u64) -> Result<Score> {
        let train = share_of_labels(self.labels, &self.split.train, share, seed);
        let test = &self.split.test;
        let said = match (kind, self.labels) {
            (Kind::Knn, Labels::Classes { of, .. }) => Said::Classes(nearest_neighbours(e, of, &train, test, self.k)),
            (Kind::Knn, Labels::Multi { of, names }) => {
                Said::Scores(neighbour_shares(e, of, names.len(), &train, test, self.k), 0.5)
            }
            (Kind::Logistic, _) => return self.logistic(e, &train, seed),
            _ => bail!("{} are not for this probe", self.labels.described()),
        };
        Ok(self.judge(said, test, seed, train.len()))
    }

    /// MMEarth's linear probe of `encoder`, whose weights stay as they are.
    pub fn linear_probe(
        &self,
        encoder: &Encoder,
        tiles: &Tiles,
        bands: &[BandCard],
        share: f64,
        seed: u64,
        what: &str,
    ) -> Result<Score> {
        let train = share_of_labels(self.labels, &self.split.train, share, seed);
        let recipe = Recipe::linear_probe(train.len(), self.split.train.len(), seed);
        let mut random = generator(seed, Stream::Weights, 0);
        let side = tiles.shape[2];
        let net = Net::new(encoder, self.labels, &train, tiles.len(), side, Trained::Head, &mut random)?;
        fit(&net, Examples { tiles, bands, labels: self.labels, rows: &train }, &recipe, None, what)?;
        let logits = net.predict(tiles, bands, &self.split.test, what)?;
        let said = match self.labels {
            Labels::Multi { .. } => Said::Scores(logits.iter().map(|v| f64::from(*v)).collect(), 0.0),
            _ => Said::Classes(logits.chunks_exact(self.labels.outputs()).map(greatest).collect()),
        };
        Ok(self.judge(said, &self.split.test, seed, train.len()))
    }

    /// The logistic regression.
    fn logistic(&self, e: &Matrix, train: &[usize], seed: u64) -> Result<Score> {
        let standardiser = Standardiser::fit(e, train);
        let [x, validation, test] =
            [train, &self.split.validation, &self.split.test].map(|rows| standardiser.apply(e, rows));
        let classes = self.labels.outputs();
        let mut best: Option<(Option<f64>, f64, Option<f64>, Said)> = None;
        let (mut last, mut last_each) = (None, None);
        for c in strengths(self.c, !self.split.validation.is_empty()) {
            let say = |x: &[f64], one: &Option<Logistic>, each: &Option<LogisticEach>| match (one, each) {
                (Some(fit), _) => Said::Classes(fit.predict(x)),
                (_, Some(fit)) => Said::Scores(fit.scores(x), 0.0),
                _ => Said::Classes(Vec::new()),
            };
            match self.labels {
                Labels::Classes { of, .. } => {
                    let labels: Vec<usize> = train.iter().map(|i| of[*i]).collect();
                    last = Some(Logistic::fit(&x, e.columns, &labels, classes, c, last.as_ref()));
                }
                Labels::Multi { of, .. } => {
                    let labels: Vec<bool> = train.iter().flat_map(|i| &of[i * classes..][..classes]).copied().collect();
                    last_each = Some(LogisticEach::fit(&x, e.columns, &labels, classes, c, last_each.as_ref()));
                }
                other => bail!("{} are not for this probe", other.described()),
            }
            let said = say(&validation, &last, &last_each);
            let score = (!validation.is_empty()).then(|| self.judge(said, &self.split.validation, seed, 0).score);
            // Of equally good ones the strongest penalty stays.
            if best.as_ref().is_none_or(|(before, ..)| score > *before) {
                let gradient = last.as_ref().map(|fit| fit.gradient);
                best = Some((score, c, gradient, say(&test, &last, &last_each)));
            }
        }
        let (validation, c, gradient, said) = best.unwrap_or_else(|| unreachable!("there is at least one strength"));
        let score = self.judge(said, &self.split.test, seed, train.len());
        Ok(Score { c: Some(c), validation, gradient, ..score })
    }

    /// Compares what is said of the tiles `rows` with their labels.
    fn judge(&self, said: Said, rows: &[usize], seed: u64, trained: usize) -> Score {
        let mut score = Score { seed, rows: trained, ..Score::default() };
        match (said, self.labels) {
            (Said::Classes(predicted), Labels::Classes { of, names }) => {
                let confusion = Confusion::new(names.len(), rows.iter().map(|i| of[*i]), &predicted);
                score.score = confusion.accuracy();
                score.confusion = Some(confusion);
            }
            (Said::Scores(scores, from), Labels::Multi { of, names }) => {
                let n = names.len();
                let truth: Vec<bool> = rows.iter().flat_map(|i| &of[i * n..][..n]).copied().collect();
                // A score of exactly one half, of an even number of neighbours, says the class.
                let predicted: Vec<bool> = scores.iter().map(|s| *s >= from).collect();
                score.score = micro_f1(&truth, &predicted);
                score.average_precision = Some(micro_average_precision(&truth, &scores));
            }
            _ => unreachable!("what is said fits the labels"),
        }
        score
    }
}

/// Index of the greatest value; of equal ones the first.
pub(crate) fn greatest(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// A row of a table: the scores of every probe and share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The model or baseline.
    pub name: String,
    /// What it is, in a few words.
    pub about: String,
    /// Length of its features.
    pub dimension: usize,
    /// By probe, then by share in per cent, one a seed.
    pub scores: BTreeMap<Kind, BTreeMap<String, Vec<Score>>>,
}
