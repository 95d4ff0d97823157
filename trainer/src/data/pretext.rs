//! The pretext tasks of a run: what is predicted from a masked tile, and the truth of it batch by batch.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{Device, Tensor};
use nadir_formats::{BandCard, Tiles};

use super::rcf::RANDOM_TASK;
use super::{ImageTarget, ImageValues, RandomFeatures, Symmetry, channel_statistics, input, normalised, source, value};
use crate::mpmae::{Target, Task, TaskKind};

/// Name of the task that predicts the input bands themselves.
const INPUT_TASK: &str = "tiles";

/// A further pixel modality, aligned with the tiles: `NAME=FILE.npy:regress` or `NAME=FILE.npy:classify:CLASSES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PixelTarget {
    /// Name of the task.
    pub name: String,
    /// Its `.npy` array `[tiles, channels, side, side]`.
    pub path: PathBuf,
    /// How it is predicted.
    pub kind: PixelTargetKind,
}

/// How a pixel modality is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelTargetKind {
    /// Channels brought to zero mean and unit variance; values that are not finite are missing.
    Regress,
    /// One channel of class indices; anything that is not an index below `classes` is missing.
    Classify {
        /// Number of classes.
        classes: usize,
    },
}

impl FromStr for PixelTarget {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let form = || anyhow!("{text:?} is not NAME=FILE.npy:regress or NAME=FILE.npy:classify:CLASSES");
        let (name, rest) = text.split_once('=').ok_or_else(form)?;
        let (path, kind) = if let Some(path) = rest.strip_suffix(":regress") {
            (path, PixelTargetKind::Regress)
        } else {
            let (path, classes) = rest.rsplit_once(":classify:").ok_or_else(form)?;
            let classes = classes.parse().ok().filter(|k| (2..=65536).contains(k)).ok_or_else(form)?;
            (path, PixelTargetKind::Classify { classes })
        };
        ensure!(!name.is_empty() && !name.contains('.') && !path.is_empty(), form());
        Ok(Self { name: name.to_owned(), path: path.into(), kind })
    }
}

/// The tiles in use with everything that is predicted from them.
pub struct Pretext {
    tiles: Tiles,
    bands: Vec<BandCard>,
    normalise_patches: bool,
    pixels: Vec<(Task, Tiles, Vec<BandCard>)>,
    images: Vec<ImageTarget>,
    /// Side of a part and number of components, and then these.
    random: Option<([usize; 2], OnceCell<RandomFeatures>)>,
}

impl Pretext {
    /// The task of predicting the bands of `tiles`; `normalise_patches` is for that task alone.
    pub fn new(tiles: Tiles, bands: Vec<BandCard>, normalise_patches: bool) -> Self {
        Self { tiles, bands, normalise_patches, pixels: Vec::new(), images: Vec::new(), random: None }
    }

    /// Adds image-level tasks; their truth has one row a tile.
    pub fn add_images(&mut self, targets: impl IntoIterator<Item = ImageTarget>) -> Result<()> {
        for target in targets {
            self.check_name(&target.name)?;
            self.images.push(target);
        }
        Ok(())
    }

    /// Reads and adds a pixel modality of `all` tiles, of which the run uses `rows`.
    pub fn add_pixels(&mut self, target: &PixelTarget, all: usize, rows: &[usize]) -> Result<()> {
        self.check_name(&target.name)?;
        let path = target.path.display();
        let array = Tiles::read(&target.path)?;
        let [n, channels, height, width] = array.shape;
        let side = self.tiles.shape[2];
        ensure!(n == all, "{path}: has {n} tiles, the input has {all}");
        ensure!(
            height == side && width == side,
            "{path}: tiles are {height} x {width} pixels, the input's are {side} x {side}"
        );
        let array = array.pick(rows);
        let (kind, cards) = match target.kind {
            PixelTargetKind::Regress => {
                let cards = (0..channels).map(|c| channel_card(&array, c, &target.path)).collect::<Result<_>>()?;
                (TaskKind::PixelRegression { channels, normalise_patches: false }, cards)
            }
            PixelTargetKind::Classify { classes } => {
                ensure!(channels == 1, "{path}: has {channels} channels, a classification takes 1");
                let known = (0..array.len() * array.tile_len()).any(|at| class(value(&array.pixels, at), classes) >= 0);
                ensure!(known, "{path}: no pixel holds a class below {classes}");
                (TaskKind::PixelClassification { classes }, Vec::new())
            }
        };
        self.pixels.push((Task { name: target.name.clone(), kind }, array, cards));
        Ok(())
    }

    /// Adds the task of telling `width` random features of the visible patches, of `patch` pixels a side. They are there after
    /// [`compute`](Self::compute).
    pub fn add_random_features(&mut self, patch: usize, width: usize) -> Result<()> {
        self.check_name(RANDOM_TASK)?;
        RandomFeatures::check(self.tiles.len(), self.tiles.shape[2], patch, width)?;
        self.random = Some(([patch, width], OnceCell::new()));
        Ok(())
    }

    /// Computes what takes time.
    pub fn compute(&self, seed: u64) -> Result<()> {
        if let Some(([patch, width], random)) = &self.random
            && random.get().is_none()
        {
            let all: Vec<usize> = (0..self.tiles.len()).collect();
            let features = RandomFeatures::new(&self.tiles, &self.bands, &all, *patch, *width, seed)?;
            random.get_or_init(|| features);
        }
        Ok(())
    }

    fn check_name(&self, name: &str) -> Result<()> {
        if self.tasks().iter().any(|task| task.name == name) {
            bail!("two tasks are named {name}");
        }
        Ok(())
    }

    /// All tasks: the input bands, the further pixel modalities, the image-level ones, random features.
    pub fn tasks(&self) -> Vec<Task> {
        let channels = self.bands.len();
        let kind = TaskKind::PixelRegression { channels, normalise_patches: self.normalise_patches };
        let mut tasks = vec![Task { name: INPUT_TASK.into(), kind }];
        tasks.extend(self.pixels.iter().map(|(task, ..)| task.clone()));
        tasks.extend(self.images.iter().map(|target| {
            let kind = match target.values {
                ImageValues::Values { width, .. } => TaskKind::ImageRegression { width },
                ImageValues::Classes { count, .. } => TaskKind::ImageClassification { classes: count },
            };
            Task { name: target.name.clone(), kind }
        }));
        tasks.extend(self.random.iter().map(|([_, width], _)| Task {
            name: RANDOM_TASK.into(),
            kind: TaskKind::EmbeddingRegression { width: *width },
        }));
        tasks
    }

    /// The tiles in use.
    pub fn tiles(&self) -> &Tiles {
        &self.tiles
    }

    /// The input bands.
    pub fn bands(&self) -> &[BandCard] {
        &self.bands
    }

    /// The encoder's input for the drawn tiles, and one target a task.
    pub fn batch(&self, draws: &[(usize, Symmetry)], device: &Device) -> Result<(Tensor, Vec<Target>)> {
        let side = self.tiles.shape[2];
        let batch = draws.len();
        let known = normalised(&self.tiles, &self.bands, draws, f32::NAN);
        let mut targets = vec![Target::Values(Tensor::from_vec(known, (batch, self.bands.len(), side, side), device)?)];
        for (task, array, cards) in &self.pixels {
            targets.push(match task.kind {
                TaskKind::PixelClassification { classes } => {
                    let data = pixel_classes(array, classes, draws);
                    Target::Classes(Tensor::from_vec(data, (batch, side, side), device)?)
                }
                _ => {
                    let data = normalised(array, cards, draws, f32::NAN);
                    Target::Values(Tensor::from_vec(data, (batch, cards.len(), side, side), device)?)
                }
            });
        }
        for target in &self.images {
            targets.push(match &target.values {
                ImageValues::Values { width, data } => {
                    let rows = draws.iter().flat_map(|(i, _)| &data[i * width..(i + 1) * width]).copied().collect();
                    Target::Values(Tensor::from_vec::<_, f32>(rows, (batch, *width), device)?)
                }
                ImageValues::Classes { data, .. } => {
                    let rows = draws.iter().map(|(i, _)| data[*i]).collect();
                    Target::Classes(Tensor::from_vec::<_, i64>(rows, batch, device)?)
                }
            });
        }
        if let Some((_, random)) = &self.random {
            let random = random.get().context("the random features are not computed")?;
            targets.push(Target::Values(random.batch(draws)?));
        }
        Ok((input(&self.tiles, &self.bands, draws, device)?, targets))
    }
}

/// A channel of a pixel modality as a band without "no data" value.
fn channel_card(array: &Tiles, channel: usize, path: &Path) -> Result<BandCard> {
    let context = || format!("{}: channel {channel}", path.display());
    let (mean, std) = channel_statistics(array, channel, None).with_context(context)?;
    let (mean, std) = (mean as f32, std as f32);
    Ok(BandCard { name: String::new(), unit: String::new(), mean, std, no_data: None, saturation: None })
}

/// The class that a stored value means, -1 if none.
fn class(v: f32, classes: usize) -> i64 {
    if v >= 0.0 && v < classes as f32 && v.fract() == 0.0 { v as i64 } else { -1 }
}

fn pixel_classes(array: &Tiles, classes: usize, draws: &[(usize, Symmetry)]) -> Vec<i64> {
    let side = array.shape[2];
    let pixel = |tile: usize, at| class(value(&array.pixels, tile * side * side + at), classes);
    draws
        .iter()
        .flat_map(|&(tile, symmetry)| {
            (0..side * side).map(move |at| pixel(tile, source(symmetry, side, at / side, at % side)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nadir_formats::Pixels;

    #[test]
    fn pixel_targets_are_read_from_text() {
        let parsed: PixelTarget = "height=a=b.npy:regress".parse().unwrap();
        assert_eq!((parsed.name.as_str(), parsed.path.to_str()), ("height", Some("a=b.npy")));
        let parsed: PixelTarget = "cover=c.npy:classify:11".parse().unwrap();
        assert_eq!(parsed.kind, PixelTargetKind::Classify { classes: 11 });
        for bad in ["height", "=f.npy:regress", "a.b=f.npy:regress", "a=f.npy", "a=f.npy:classify:1", "a=:regress"] {
            assert!(bad.parse::<PixelTarget>().is_err(), "{bad}");
        }
    }

    #[test]
    fn targets_turn_with_the_tile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cover.npy");
        let plane = |n: u8| (0..4).map(move |i| i + n);
        let array = Tiles { shape: [2, 1, 2, 2], pixels: Pixels::U8(plane(0).chain(plane(1)).collect()) };
        array.write(&path).unwrap();
        let band = BandCard {
            name: "B4".into(),
            unit: String::new(),
            mean: 0.0,
            std: 1.0,
            no_data: Some(3.0),
            saturation: None,
        };
        let mut pretext = Pretext::new(array.pick(&[0, 1]), vec![band], false);
        let target: PixelTarget = format!("cover={}:classify:3", path.display()).parse().unwrap();
        pretext.add_pixels(&target, 2, &[0, 1]).unwrap();
        assert!(pretext.add_pixels(&target, 2, &[0, 1]).unwrap_err().to_string().contains("two tasks"));
        let (x, targets) = pretext.batch(&[(1, 0), (0, 1)], &Device::Cpu).unwrap();
        let x: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(x, [1.0, 2.0, 0.0, 4.0, 1.0, 0.0, 0.0, 2.0]);
        let Target::Values(tiles) = &targets[0] else { panic!() };
        let tiles: Vec<f32> = tiles.flatten_all().unwrap().to_vec1().unwrap();
        assert!(tiles[2].is_nan() && tiles[6].is_nan() && tiles[5] == 0.0, "{tiles:?}");
        let Target::Classes(cover) = &targets[1] else { panic!() };
        let cover: Vec<i64> = cover.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(cover, [1, 2, -1, -1, 1, 0, -1, 2]);
        let short: PixelTarget = format!("other={}:regress", path.display()).parse().unwrap();
        assert!(pretext.add_pixels(&short, 3, &[0, 1]).unwrap_err().to_string().contains("2 tiles, the input has 3"));
    }
}
