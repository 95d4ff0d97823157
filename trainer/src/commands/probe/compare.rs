//! `trainer probe --model`: many models, probes, shares of labels and seeds in one table.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use clap::{Args, ValueEnum};
use nadir_formats::{BandCard, Matrix, ModelCard, Tiles};
use serde_json::json;

use super::super::device::DeviceArgs;
use super::super::labelled::{Labelled, named};
use super::super::read_model;
use crate::chart;
use crate::data::{AS_IS, Labels, RandomFeatures, Stream, generator, random_features};
use crate::encoder::Encoder;
use crate::params::Init;
use crate::probe::compare::{Kind, Row, Score, Task};
use crate::probe::{band_statistics, map, table};
use crate::run::{embed_tiles, fit_norm};

/// Random features in their row.
const RANDOM_FEATURES: usize = 64;
const RANDOM_FEATURES_ROW: &str = "random features";
/// The most tiles on a map.
const ON_MAP: usize = 2000;

/// What a comparison compares.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// A model to compare, by its own name or as NAME=PATH; give the option once a model
    #[arg(long = "model", value_name = "[NAME=]MODEL.safetensors", conflicts_with = "embeddings")]
    pub models: Vec<String>,

    /// The probes [default: knn,logistic]
    #[arg(long, value_enum, value_delimiter = ',', requires = "models")]
    probes: Vec<Kind>,

    /// Shares of the training labels in per cent, drawn from each class alike and anew by each seed [default: 100]
    #[arg(long, value_name = "SHARES", value_delimiter = ',', value_parser = share, requires = "models")]
    few_shot: Vec<f64>,

    /// Seeds to run, from 1 on
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,

    /// Rows beside the models [default: random,statistics]
    #[arg(long, value_enum, value_delimiter = ',', requires = "models")]
    baselines: Vec<Baseline>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Also write table.md, results.json, and for each model and the band statistics a confusion matrix and maps of their features, into this
    /// folder
    #[arg(long, value_name = "DIR", requires = "models")]
    out: Option<PathBuf>,

    /// The maps to draw with --out [default: pca,tsne]
    #[arg(long, value_enum, value_delimiter = ',', requires = "out")]
    maps: Vec<Plane>,
}

/// Rows that need no model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Baseline {
    /// The first model's architecture with random weights, drawn by each seed
    Random,
    /// Mean, deviation, least, greatest, and 10th, 50th and 90th percentile of each band
    Statistics,
    /// Principal components of how strongly a tile answers to patches of training tiles, drawn by each seed
    RandomFeatures,
    /// No such row
    None,
}

/// How features come onto a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Plane {
    /// Principal components
    Pca,
    /// t-SNE
    Tsne,
    /// No map
    None,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.trim().parse().map_err(|_| "is not a number".to_owned())?;
    if share > 0.0 && share <= 100.0 { Ok(share / 100.0) } else { Err("must be above 0 and at most 100".into()) }
}

/// An encoder, and what it reads of the data.
struct Model<'a> {
    name: String,
    about: String,
    encoder: Encoder,
    tiles: std::borrow::Cow<'a, Tiles>,
    bands: Vec<BandCard>,
}

impl CompareArgs {
    /// Runs all and prints the table, or one JSON object.
    pub fn run(&self, data: &Labelled, k: usize, c: Option<f64>, as_json: bool) -> Result<()> {
        ensure!(
            matches!(data.labels, Labels::Classes { .. } | Labels::Multi { .. }),
            "labels are {}: probes read classes of tiles; see `trainer finetune`",
            data.labels.described()
        );
        let kinds = if self.probes.is_empty() { vec![Kind::Knn, Kind::Logistic] } else { self.probes.clone() };
        let mut shares = if self.few_shot.is_empty() { vec![1.0] } else { self.few_shot.clone() };
        shares.sort_by(f64::total_cmp);
        shares.dedup();
        if let Some(pair) = shares.windows(2).find(|pair| table::per_cent(pair[0]) == table::per_cent(pair[1])) {
            bail!("--few-shot: {} % and {} % are the same to two decimals", 100.0 * pair[0], 100.0 * pair[1]);
        }
        let device = self.device.open(None)?;
        let models = self.models(data, &device)?;
        if self.baselines.contains(&Baseline::RandomFeatures) {
            let side = models[0].tiles.shape[2];
            RandomFeatures::check(data.split.train.len(), side, side, RANDOM_FEATURES)
                .context("--baselines random-features")?;
        }
        if let Some(out) = &self.out {
            std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        }
        let task = Task { labels: &data.labels, split: &data.split, k, c };
        let compare = Comparison { task: &task, kinds: &kinds, shares: &shares, seeds: self.seeds };

        let mut rows = Vec::new();
        for model in &models {
            let e = embed_tiles(&model.encoder, &model.tiles, &model.bands, AS_IS, &model.name)?;
            rows.push(compare.row(
                &model.name,
                &model.about,
                |_| Ok((e.clone(), Some(model.encoder.clone()))),
                true,
                model,
            )?);
            self.pictures(data, &rows[rows.len() - 1], &e)?;
        }
        let first = &models[0];
        let wanted = |baseline| match self.baselines.is_empty() {
            true => baseline != Baseline::RandomFeatures,
            false => self.baselines.contains(&baseline),
        };
        if wanted(Baseline::Random) {
            let about = format!("random weights, {}", first.about);
            let train = first.tiles.pick(&data.split.train);
            let random = |seed: u64| -> Result<(Matrix, Option<Encoder>)> {
                let mut rng = generator(seed, Stream::Weights, 0);
                let (shape, bands) = (first.encoder.architecture(), first.bands.len());
                let encoder = Encoder::init_as(Init::FanIn, shape, bands, &mut rng, &device)?;
                fit_norm(&encoder, &train, &first.bands)?;
                Ok((embed_tiles(&encoder, &first.tiles, &first.bands, AS_IS, "random")?, Some(encoder)))
            };
            rows.push(compare.row("random", &about, random, false, first)?);
        }
        if wanted(Baseline::Statistics) {
            let e = band_statistics(&first.tiles, &first.bands, &data.split.train);
            let about = "seven statistics of each band, standardised";
            rows.push(compare.row("band statistics", about, |_| Ok((e.clone(), None)), true, first)?);
            self.pictures(data, &rows[rows.len() - 1], &e)?;
        }
        if wanted(Baseline::RandomFeatures) {
            let features = |seed| {
                let e = random_features(&first.tiles, &first.bands, &data.split.train, RANDOM_FEATURES, seed)?;
                Ok((e, None))
            };
            let about = format!("{RANDOM_FEATURES} random convolutional features, whitened");
            rows.push(compare.row(RANDOM_FEATURES_ROW, &about, features, false, first)?);
        }
        let text = table::markdown(&rows, &kinds, &shares, k);
        let object = json!({
            "data": data.name,
            "labels": data.labels.described(),
            "tiles": {
                "train": data.split.train.len(),
                "validation": data.split.validation.len(),
                "test": data.split.test.len(),
            },
            "k": k,
            "seeds": self.seeds,
            "rows": rows,
        });
        if let Some(out) = &self.out {
            nadir_formats::write_atomic(&out.join("table.md"), text.as_bytes())?;
            let json = serde_json::to_string_pretty(&object)? + "\n";
            nadir_formats::write_atomic(&out.join("results.json"), json.as_bytes())?;
        }
        if as_json {
            println!("{object}");
        } else {
            println!("{}", heading(data, self.seeds));
            print!("\n{text}");
        }
        Ok(())
    }

    /// Reads all models before the first is run.
    fn models<'a>(&self, data: &'a Labelled, device: &Device) -> Result<Vec<Model<'a>>> {
        let mut names = BTreeSet::from(["random", "band statistics", RANDOM_FEATURES_ROW].map(str::to_owned));
        let (mut models, mut first) = (Vec::new(), None);
        for text in &self.models {
            let (name, path) = named(text);
            let (card, encoder): (ModelCard, Encoder) = read_model(path, device)?;
            let name = name.unwrap_or(&card.name).to_owned();
            ensure!(names.insert(name.clone()), "two rows are named {name}: give --model NAME=PATH");
            let order = card.band_names().join(",");
            if data.bands.is_none() {
                let first = first.get_or_insert_with(|| order.clone());
                ensure!(
                    *first == order,
                    "{name} takes the bands {order}, another model {first}: name the tiles' with --bands"
                );
            }
            let (tiles, bands, encoder) = data.for_model(&card, &encoder)?;
            let parameters = encoder.params().count() as f64 / 1e6;
            let about = format!("{parameters:.2} M parameters, {} bands", bands.len());
            models.push(Model { name, about, encoder, tiles, bands });
        }
        Ok(models)
    }

    /// Writes the confusion matrix and the maps of a row.
    fn pictures(&self, data: &Labelled, row: &Row, e: &Matrix) -> Result<()> {
        let (Some(out), Labels::Classes { of, names }) = (&self.out, &data.labels) else { return Ok(()) };
        let file = |kind: &str| out.join(format!("{kind}-{}.png", file_name(&row.name)));
        let write = |path: &Path, canvas: chart::Canvas| -> Result<()> {
            Ok(nadir_formats::write_atomic(path, &canvas.png()?)?)
        };
        let shown = [Kind::Logistic, Kind::Knn, Kind::Mmearth]
            .into_iter()
            .find_map(|kind| Some((kind, row.scores.get(&kind)?)));
        if let Some((kind, by_share)) = shown
            && let Some(score) = by_share.values().flatten().max_by_key(|score| (score.rows, Reverse(score.seed)))
            && let Some(confusion) = &score.confusion
        {
            let probe = kind.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned());
            let title = format!("{}, {probe}: {:.1} % right", row.name, 100.0 * score.score);
            write(&file("confusion"), chart::confusion(confusion, names, &title))?;
        }
        let test = &data.split.test;
        let shown: Vec<usize> = test.iter().copied().step_by(test.len().div_ceil(ON_MAP)).collect();
        let classes: Vec<usize> = shown.iter().map(|i| of[*i]).collect();
        let wanted = |plane| self.maps.is_empty() || self.maps.contains(&plane);
        if wanted(Plane::Pca) {
            let title = format!("{}: principal components of {} test tiles", row.name, shown.len());
            write(&file("pca"), chart::map(&map::principal_components(e, &shown), &classes, names, &title))?;
        }
        if wanted(Plane::Tsne) {
            let title = format!("{}: t-SNE of {} test tiles", row.name, shown.len());
            write(&file("tsne"), chart::map(&map::neighbourhoods(e, &shown), &classes, names, &title))?;
        }
        Ok(())
    }
}

/// What all rows share.
struct Comparison<'a> {
    task: &'a Task<'a>,
    kinds: &'a [Kind],
    shares: &'a [f64],
    seeds: u64,
}

impl Comparison<'_> {
    /// All scores of one row. `features` gives a seed's features and encoder; `fixed` says that all seeds have the same.
    fn row(
        &self,
        name: &str,
        about: &str,
        features: impl Fn(u64) -> Result<(Matrix, Option<Encoder>)>,
        fixed: bool,
        model: &Model,
    ) -> Result<Row> {
        let mut row = Row { name: name.into(), about: about.into(), dimension: 0, scores: Default::default() };
        for seed in 1..=self.seeds {
            let (e, encoder) = features(seed)?;
            row.dimension = e.columns;
            for &kind in self.kinds {
                for &share in self.shares {
                    // With all labels and equal features a seed has nothing to draw.
                    if seed > 1 && fixed && share >= 1.0 && kind != Kind::Mmearth {
                        continue;
                    }
                    let what = format!("{name}, {} % of the labels, seed {seed}", table::per_cent(share));
                    let score: Score = match (kind, &encoder) {
                        (Kind::Mmearth, None) => continue,
                        (Kind::Mmearth, Some(encoder)) => {
                            self.task.linear_probe(encoder, &model.tiles, &model.bands, share, seed, &what)?
                        }
                        _ => self.task.probe(kind, &e, share, seed)?,
                    };
                    let by_share = row.scores.entry(kind).or_default();
                    by_share.entry(table::per_cent(share)).or_default().push(score);
                }
            }
        }
        Ok(row)
    }
}

/// What the table's figures are.
fn heading(data: &Labelled, seeds: u64) -> String {
    let figures = match data.labels {
        Labels::Multi { .. } => "micro F1 / micro average precision",
        _ => "accuracy",
    };
    let [train, validation, test] = [&data.split.train, &data.split.validation, &data.split.test].map(Vec::len);
    format!(
        "{}: {}; tiles: train {train}, validation {validation}, test {test}\n{figures} in per cent, mean and deviation \
         over {seeds} seeds where they differ",
        data.name,
        data.labels.described()
    )
}

/// The name with everything that does not belong into a file's name as `-`.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect()
}
