//! Prototypes from labelled tiles.
//!
//! Each class gets a few prototypes by spherical k-means about the mean of all embeddings. The probability curve and the
//! novelty threshold are found by two-fold cross-validation: prototypes of one half judge the tiles of the other, because a
//! tile is always near prototypes that it took part in.

use anyhow::{Context, Result, ensure};
use nadir::triage::novelty::NEIGHBOURS;
use nadir::triage::prototypes::{Header, Prototypes, Table, quantize_direction};

use crate::assess::score;
use crate::kmeans::{Random, normalised, spherical_kmeans};
use crate::logistic;

/// Share of the tiles seen that are less novel than the threshold.
const NOVELTY_QUANTILE: f64 = 0.99;

/// What to learn.
#[derive(Clone, Debug)]
pub struct Request {
    /// Labels of the classes of interest.
    pub wanted: Vec<u16>,
    /// The most prototypes of one class.
    pub per_class: usize,
    /// The most embeddings in the bank.
    pub bank: usize,
    /// Fixes the k-means.
    pub seed: u64,
}

/// A prototype file and what is in it.
#[derive(Clone, Debug)]
pub struct Learned {
    /// The file.
    pub bytes: Vec<u8>,
    /// By rising label.
    pub classes: Vec<ClassCount>,
    /// Whether midpoint and temperature were fitted to held-out margins; otherwise they are defaults.
    pub fitted: bool,
    /// Chance that a wanted tile has a larger margin than another one (area under the ROC curve), both held out; `None` if
    /// there were too few tiles to hold any out, or no other class.
    pub held_out_auc: Option<f64>,
}

/// What a class contributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassCount {
    /// Its label.
    pub label: u16,
    /// Its tiles.
    pub tiles: usize,
    /// Its prototypes.
    pub prototypes: usize,
}

/// Midpoint, temperature and novelty threshold of a table.
#[derive(Clone, Copy, Debug)]
struct Curve {
    midpoint: f32,
    temperature: f32,
    novel_from: f32,
}

const DEFAULT_CURVE: Curve = Curve { midpoint: 0.0, temperature: 0.05, novel_from: 0.5 };

struct Data<'a> {
    space: &'a str,
    embeddings: &'a [Vec<f32>],
    labels: &'a [u16],
    centre: Vec<f32>,
    request: &'a Request,
}

/// Learns a table from `embeddings`, one a tile and all of one dimension, and their `labels`.
///
/// # Errors
/// If there is no tile, or none of a wanted class, or if the table does not fit the file's 16-bit counts.
pub fn learn(space: &str, embeddings: &[Vec<f32>], labels: &[u16], request: &Request) -> Result<Learned> {
    ensure!(embeddings.len() == labels.len(), "{} labels for {} tiles", labels.len(), embeddings.len());
    let first = embeddings.first().context("no tile to learn from")?;
    let mut sums = vec![0f64; first.len()];
    for embedding in embeddings {
        ensure!(
            embedding.len() == first.len() && embedding.iter().all(|v| v.is_finite()),
            "an embedding is not finite"
        );
        sums.iter_mut().zip(embedding).for_each(|(s, v)| *s += f64::from(*v));
    }
    let centre = sums.iter().map(|s| (s / embeddings.len() as f64) as f32).collect();
    let mut classes: Vec<u16> = labels.to_vec();
    classes.sort_unstable();
    classes.dedup();
    for wanted in &request.wanted {
        ensure!(classes.contains(wanted), "no tile of the wanted class {wanted}; there are classes {classes:?}");
    }
    let data = Data { space, embeddings, labels, centre, request };
    let (curve, fitted, held_out_auc) = data.calibrate(&classes)?;
    let all: Vec<usize> = (0..labels.len()).collect();
    let (bytes, counts) = data.build(&all, &classes, curve)?;
    Ok(Learned { bytes, classes: counts, fitted, held_out_auc })
}

impl Data<'_> {
    /// The file made from the tiles `rows`.
    fn build(&self, rows: &[usize], classes: &[u16], curve: Curve) -> Result<(Vec<u8>, Vec<ClassCount>)> {
        let direction = |row: usize| {
            let centred: Vec<f32> = self.embeddings[row].iter().zip(&self.centre).map(|(e, c)| e - c).collect();
            normalised(&centred)
        };
        let (mut labels, mut vectors, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        let mut random = Random(self.request.seed);
        for &class in classes {
            let points: Vec<Vec<f32>> =
                rows.iter().filter(|r| self.labels[**r] == class).filter_map(|r| direction(*r)).collect();
            let mut made = 0;
            for centre in spherical_kmeans(&points, self.request.per_class, &mut random) {
                if push_direction(&centre, &mut vectors) {
                    labels.push((class, self.request.wanted.contains(&class)));
                    made += 1;
                }
            }
            counts.push(ClassCount { label: class, tiles: points.len(), prototypes: made });
        }
        let mut bank = Vec::new();
        let size = self.request.bank.min(rows.len());
        let bank_rows =
            (0..size).filter(|i| direction(rows[i * rows.len() / size]).is_some_and(|d| push_direction(&d, &mut bank)));
        let bank_rows = bank_rows.count();
        let header = Header {
            embedding_space: self.space,
            dimension: u16::try_from(self.centre.len()).context("the dimension does not fit 16 bits")?,
            prototypes: u16::try_from(labels.len()).context("more than 65535 prototypes")?,
            bank: u16::try_from(bank_rows).context("more than 65535 embeddings in the bank")?,
            midpoint: curve.midpoint,
            temperature: curve.temperature,
            novel_from: curve.novel_from,
        };
        let table = Table { header, centre: &self.centre, labels: &labels, vectors: &vectors, bank: &bank };
        let mut bytes = vec![0; table.max_bytes()];
        let len = table.write(&mut bytes)?;
        bytes.truncate(len);
        Ok((bytes, counts))
    }

    /// The curve, whether its midpoint and temperature were fitted, and the area under the ROC curve of the held-out margins;
    /// defaults if a half would hold no wanted tile.
    fn calibrate(&self, classes: &[u16]) -> Result<(Curve, bool, Option<f64>)> {
        // Each class shuffled and dealt out in turn, so that both halves hold half of it whatever its order was.
        let mut random = Random(self.request.seed);
        let mut halves = [Vec::new(), Vec::new()];
        for class in classes {
            let mut rows: Vec<usize> = (0..self.labels.len()).filter(|r| self.labels[*r] == *class).collect();
            for i in (1..rows.len()).rev() {
                rows.swap(i, (random.unit() * (i + 1) as f64) as usize);
            }
            for (i, row) in rows.into_iter().enumerate() {
                halves[i % 2].push(row);
            }
        }
        let is_wanted = |row: usize| self.request.wanted.contains(&self.labels[row]);
        if halves.iter().any(|half| !half.iter().any(|row| is_wanted(*row))) {
            return Ok((DEFAULT_CURVE, false, None));
        }
        let (mut margins, mut novelties) = (Vec::new(), Vec::new());
        for (rows, held_out) in [(&halves[0], &halves[1]), (&halves[1], &halves[0])] {
            let (bytes, _) = self.build(rows, classes, DEFAULT_CURVE)?;
            let table = Prototypes::parse(&bytes)?;
            for &row in held_out {
                let scored = score(&table, &self.embeddings[row], NEIGHBOURS)?;
                margins.push((scored.scores.margin(), is_wanted(row)));
                novelties.push(scored.scores.novelty());
            }
        }
        // Without other classes, or with margins that tell nothing, there is no curve to fit; novelty is still calibrated.
        let fit = logistic::fit(&margins);
        let (midpoint, temperature) = fit.unwrap_or((DEFAULT_CURVE.midpoint, DEFAULT_CURVE.temperature));
        novelties.sort_by(f32::total_cmp);
        let at = ((novelties.len() - 1) as f64 * NOVELTY_QUANTILE) as usize;
        let novel_from = novelties[at].clamp(1e-3, 2.0);
        Ok((Curve { midpoint, temperature, novel_from }, fit.is_some(), area_under_roc(&mut margins)))
    }
}

/// Chance that a wanted margin is larger than another one, equal ones counting half; `None` without either. Sorts `margins`.
fn area_under_roc(margins: &mut [(f32, bool)]) -> Option<f64> {
    margins.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut others_below, mut area) = (0.0, 0.0);
    for equal in margins.chunk_by(|a, b| a.0 == b.0) {
        let wanted = equal.iter().filter(|m| m.1).count() as f64;
        let others = equal.len() as f64 - wanted;
        area += wanted * (others_below + others / 2.0);
        others_below += others;
    }
    let wanted = margins.len() as f64 - others_below;
    (wanted * others_below > 0.0).then(|| area / (wanted * others_below))
}

fn push_direction(direction: &[f32], to: &mut Vec<i8>) -> bool {
    let mut coded = vec![0; direction.len()];
    let usable = quantize_direction(direction, &mut coded);
    if usable {
        to.extend(coded);
    }
    usable
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three classes of two clusters each, well apart.
    fn data(random: &mut Random) -> (Vec<Vec<f32>>, Vec<u16>) {
        (0..300)
            .map(|i| {
                let cluster = i % 6;
                let e = (0..16).map(|d| 5.0 + f32::from(d == cluster) * 4.0 + (random.unit() as f32 - 0.5)).collect();
                (e, [3, 5, 9][cluster / 2])
            })
            .unzip()
    }

    fn request() -> Request {
        Request { wanted: vec![5], per_class: 4, bank: 50, seed: 1 }
    }

    #[test]
    fn wanted_and_novel_tiles_are_told_apart() {
        let mut random = Random(3);
        let (embeddings, labels) = data(&mut random);
        let learned = learn("space", &embeddings, &labels, &request()).unwrap();
        assert!(learned.held_out_auc.unwrap() > 0.99 && learned.fitted);
        assert_eq!(
            learned.classes.iter().map(|c| (c.label, c.tiles)).collect::<Vec<_>>(),
            [(3, 100), (5, 100), (9, 100)]
        );
        let table = Prototypes::parse(&learned.bytes).unwrap();
        let (fresh, fresh_labels) = data(&mut random);
        for (embedding, label) in fresh.iter().zip(fresh_labels) {
            let scored = score(&table, embedding, NEIGHBOURS).unwrap();
            assert_eq!(scored.signals.probability > 0.5, label == 5);
            assert_eq!(scored.scores.nearest, label);
        }
        let strange: Vec<f32> = (0..16).map(|d| 5.0 + f32::from(d == 12) * 4.0).collect();
        let novelty = score(&table, &strange, NEIGHBOURS).unwrap().signals.novelty;
        assert!(novelty > 2.0 * table.header().novel_from, "{novelty} {}", table.header().novel_from);
        assert_eq!(learn("space", &embeddings, &labels, &request()).unwrap().bytes, learned.bytes);
    }

    #[test]
    fn area_counts_pairs() {
        let mut margins = [(0.1, false), (0.3, true), (0.2, false), (0.2, true), (0.9, false), (0.05, true)];
        let mut pairs = 0.0;
        for (a, _) in margins.iter().filter(|m| m.1) {
            for (b, _) in margins.iter().filter(|m| !m.1) {
                pairs += if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                };
            }
        }
        assert!((area_under_roc(&mut margins).unwrap() - pairs / 9.0).abs() < 1e-12);
        assert_eq!(area_under_roc(&mut [(0.5, true)]), None);
    }

    #[test]
    fn few_tiles_fall_back_and_wrong_ones_are_refused() {
        let embeddings = vec![vec![1.0, 0.0], vec![0.0, 1.0]];
        let learned = learn("space", &embeddings, &[5, 6], &request()).unwrap();
        assert_eq!((learned.held_out_auc, learned.fitted), (None, false));
        assert_eq!(Prototypes::parse(&learned.bytes).unwrap().header().temperature, DEFAULT_CURVE.temperature);
        let error = |labels: &[u16]| learn("space", &embeddings, labels, &request()).unwrap_err().to_string();
        assert!(error(&[1, 2]).contains("wanted class 5") && error(&[5]).contains("1 labels for 2 tiles"));
        assert!(learn("space", &[], &[], &request()).is_err());
        // Equal embeddings have no direction about their mean.
        assert!(learn("space", &[vec![1.0], vec![1.0]], &[5, 6], &request()).is_err());
    }
}
