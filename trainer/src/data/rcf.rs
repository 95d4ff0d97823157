//! Random convolutional features: how strongly a tile answers to patches drawn from other tiles.
//!
//! Patches of the tiles themselves, whitened, are convolved with every tile; what the answers exceed a threshold by, with either
//! sign, is averaged (Coates and Ng, "Learning Feature Representations with K-means", 2012; for satellite images Rolf et al.,
//! "A generalizable and accessible approach to machine learning with global satellite imagery", Nature Communications 2021). No label
//! and no training is needed, and colour and texture are in them, which a masked autoencoder hardly keeps in the mean of its
//! features. Here each patch is used in all eight symmetries of a square, so that the features of a turned tile are those of the
//! tile, and principal components of unit variance are taken.

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use nadir_formats::{BandCard, Matrix, Tiles};
use nalgebra::{DMatrix, SymmetricEigen};
use rand::RngExt;
use rand::rngs::StdRng;
use rayon::prelude::*;

use super::{AS_IS, Stream, Symmetry, generator, normalised, source};
use crate::ops::gemm::{multiply, rows};
use crate::run::{Progress, leave_if_asked};

/// Name of the task that predicts them.
pub(super) const RANDOM_TASK: &str = "random_features";
/// Pixels a side of a patch.
const SIDE: usize = 7;
/// Patches that are convolved; each gives two features.
const PATCHES: usize = 48;
/// Patches over which the whitening is fitted.
const SAMPLE: usize = 30_720;
/// Of them, patches of one tile.
const EACH: usize = 16;
/// Share of the mean eigenvalue of the patches' covariance that is added to each: noise is not blown up.
const WHITENING: f64 = 0.01;
/// What an answer must exceed, in deviations of the whitened patches.
const THRESHOLD: f32 = 0.5;
/// Components below this share of the first one's variance are rounding.
const FLAT: f64 = 1e-6;
/// Tiles that are convolved at once.
const CHUNK: usize = 64;

/// Components of every tile, part by part: their mean over the parts of a tile has zero mean and unit variance over the tiles.
#[derive(Clone, Debug)]
pub struct RandomFeatures {
    /// Parts along one side of a tile.
    side: usize,
    /// Components.
    width: usize,
    /// `[tiles, width, side, side]`.
    values: Vec<f32>,
}

/// Most components that there are.
const MOST: usize = 2 * PATCHES;

impl RandomFeatures {
    /// Whether there can be `width` components over `fit` tiles of `pixels` pixels a side in parts of `part`.
    ///
    /// # Errors
    /// If not, saying why.
    pub fn check(fit: usize, pixels: usize, part: usize, width: usize) -> Result<()> {
        ensure!((1..=MOST).contains(&width), "{width} random features: must be 1 to {MOST}");
        ensure!(part >= SIDE, "random features of parts of {part} pixels: a part must hold a patch's {SIDE}");
        ensure!(pixels.is_multiple_of(part), "random features: tiles of {pixels} pixels are not whole parts of {part}");
        ensure!(fit > width, "{width} random features take more than {fit} tiles");
        Ok(())
    }

    /// The first `width` components over the tiles `fit`, of all `tiles` in parts of `part` pixels a side. Patches too are drawn from
    /// the tiles `fit`. Missing pixels count as their band's mean. While it computes it holds 400 bytes a part of each tile.
    ///
    /// # Errors
    /// As [`check`](Self::check), or if the tiles are too uniform for so many components.
    pub fn new(tiles: &Tiles, bands: &[BandCard], fit: &[usize], part: usize, width: usize, seed: u64) -> Result<Self> {
        let (n, pixels) = (tiles.len(), tiles.shape[2]);
        Self::check(fit.len(), pixels, part, width)?;
        let side = pixels / part;
        let filters = Filters::draw(tiles, bands, fit, &mut generator(seed, Stream::Filters, 0))?;
        let mut raw = Vec::with_capacity(n * MOST * side * side);
        let mut progress = Progress::new("random features", "tiles", 0, n as u64);
        let all: Vec<usize> = (0..n).collect();
        for chosen in all.chunks(CHUNK) {
            leave_if_asked("random features");
            let answers =
                |tile: &usize| filters.answers(&normalised(tiles, bands, &[(*tile, AS_IS)], 0.0), pixels, part);
            let each: Vec<_> = chosen.par_iter().map(answers).collect();
            raw.extend(each.into_iter().flatten());
            progress.at((raw.len() / (MOST * side * side)) as u64, "");
        }
        let values = components(&raw, fit, side * side, width)?;
        Ok(Self { side, width, values })
    }

    /// Those of the drawn tiles, `[batch, width, side, side]`, on the host; the parts are turned as the tiles are.
    pub fn batch(&self, draws: &[(usize, Symmetry)]) -> Result<Tensor> {
        let plane = self.side * self.side;
        let mut rows = Vec::with_capacity(draws.len() * self.width * plane);
        for (tile, symmetry) in draws {
            for map in self.values[tile * self.width * plane..][..self.width * plane].chunks_exact(plane) {
                let turned = |at| map[source(*symmetry, self.side, at / self.side, at % self.side)];
                rows.extend((0..plane).map(turned));
            }
        }
        Ok(Tensor::from_vec(rows, (draws.len(), self.width, self.side, self.side), &Device::Cpu)?)
    }
}

/// The first `width` components of whole tiles, `[tiles, width]`: zero mean and unit variance over the tiles `fit`, uncorrelated there.
///
/// # Errors
/// As [`RandomFeatures::new`].
pub fn random_features(tiles: &Tiles, bands: &[BandCard], fit: &[usize], width: usize, seed: u64) -> Result<Matrix> {
    let features = RandomFeatures::new(tiles, bands, fit, tiles.shape[2], width, seed)?;
    Ok(Matrix { rows: tiles.len(), columns: width, data: features.values })
}

/// What tiles are convolved with.
struct Filters {
    channels: usize,
    /// `[channels * SIDE * SIDE, 8 * PATCHES]`, one symmetry of all patches after the other.
    weight: Vec<f32>,
    /// `[8 * PATCHES]`.
    bias: Vec<f32>,
}

impl Filters {
    /// Draws patches of the tiles and whitens them.
    fn draw(tiles: &Tiles, bands: &[BandCard], fit: &[usize], random: &mut StdRng) -> Result<Self> {
        let (channels, pixels) = (bands.len(), tiles.shape[2]);
        let area = SIDE * SIDE;
        let length = channels * area;
        let reads = SAMPLE / EACH;
        let mut patches = Vec::with_capacity(SAMPLE * length);
        for _ in 0..reads {
            let tile = fit[random.random_range(0..fit.len())];
            let x = normalised(tiles, bands, &[(tile, AS_IS)], 0.0);
            for _ in 0..EACH {
                let mut corner = || random.random_range(0..=pixels - SIDE);
                let (top, left) = (corner(), corner());
                for at in 0..length {
                    let (band, y, x_) = (at / area, at % area / SIDE, at % SIDE);
                    patches.push(f64::from(x[(band * pixels + top + y) * pixels + left + x_]));
                }
            }
        }
        let patches = DMatrix::from_row_iterator(reads * EACH, length, patches);
        let mean = patches.row_mean();
        let eigen = SymmetricEigen::new(covariance(&patches));
        let floor = WHITENING * eigen.eigenvalues.mean();
        ensure!(floor > 0.0, "no pixel of the tiles differs from another: they have no random features");
        let scale = eigen.eigenvalues.map(|v| 1.0 / (v.max(0.0) + floor).sqrt());
        let whitening = &eigen.eigenvectors * DMatrix::from_diagonal(&scale) * eigen.eigenvectors.transpose();
        let mut filters = Filters { channels, weight: vec![0.0; length * 8 * PATCHES], bias: vec![0.0; 8 * PATCHES] };
        for k in 0..PATCHES {
            // One patch of a tile: neighbours are alike.
            let answer = (patches.row(k * EACH) - &mean) * &whitening;
            let upright = &answer / answer.norm().max(f64::MIN_POSITIVE) * &whitening;
            // The same in all symmetries, although the mean patch has none.
            let bias = -upright.dot(&mean) as f32;
            for symmetry in 0..8 {
                let to = usize::from(symmetry) * PATCHES + k;
                filters.bias[to] = bias;
                for at in 0..length {
                    let from = source(symmetry, SIDE, at % area / SIDE, at % SIDE);
                    filters.weight[at * 8 * PATCHES + to] = upright[at / area * area + from] as f32;
                }
            }
        }
        Ok(filters)
    }

    /// The mean answers in each part of a tile `[channels, pixels, pixels]`: `[2 * PATCHES, parts]`. A patch is in the part that its
    /// middle is in.
    fn answers(&self, x: &[f32], pixels: usize, part: usize) -> Vec<f32> {
        let (positions, side, filters) = (pixels - SIDE + 1, pixels / part, 8 * PATCHES);
        let length = self.channels * SIDE * SIDE;
        let (mut patches, mut answers) = (vec![0f32; positions * length], vec![0f32; positions * filters]);
        let mut sums = vec![[0f32; MOST]; side * side];
        let mut counts = vec![0f32; side * side];
        for top in 0..positions {
            for (left, patch) in patches.chunks_exact_mut(length).enumerate() {
                for (at, row) in patch.chunks_exact_mut(SIDE).enumerate() {
                    let (band, y) = (at / SIDE, at % SIDE);
                    row.copy_from_slice(&x[(band * pixels + top + y) * pixels + left..][..SIDE]);
                }
            }
            let size = [positions, filters, length];
            multiply(&mut answers, size, rows(&patches, length), rows(&self.weight, filters), false, false);
            for (left, answers) in answers.chunks_exact(filters).enumerate() {
                let at = (top + SIDE / 2) / part * side + (left + SIDE / 2) / part;
                counts[at] += 8.0;
                let (positive, negative) = sums[at].split_at_mut(PATCHES);
                for (answers, bias) in answers.chunks_exact(PATCHES).zip(self.bias.chunks_exact(PATCHES)) {
                    for (((p, n), answer), bias) in positive.iter_mut().zip(&mut *negative).zip(answers).zip(bias) {
                        *p += (answer + bias - THRESHOLD).max(0.0);
                        *n += (-answer - bias - THRESHOLD).max(0.0);
                    }
                }
            }
        }
        let mean = |feature: usize, at: usize| sums[at][feature] / counts[at];
        (0..MOST).flat_map(|feature| (0..side * side).map(move |at| (feature, at))).map(|(f, at)| mean(f, at)).collect()
    }
}

/// The first `width` principal components of `raw`, `[tiles, 2 * PATCHES, parts]`: axes and scale are those of
/// the means of the tiles `fit`.
fn components(raw: &[f32], fit: &[usize], parts: usize, width: usize) -> Result<Vec<f32>> {
    let n = raw.len() / (MOST * parts);
    let mean_of = |tile: usize, feature: usize| {
        let map = &raw[(tile * MOST + feature) * parts..][..parts];
        map.iter().map(|v| f64::from(*v)).sum::<f64>() / parts as f64
    };
    let means = DMatrix::from_fn(fit.len(), MOST, |row, feature| mean_of(fit[row], feature));
    let middle = means.row_mean();
    // Every feature counts alike.
    let covariance_of_means = covariance(&means);
    let variances = covariance_of_means.diagonal();
    let scale = variances.map(|v| if v > FLAT * variances.max() { 1.0 / v.sqrt() } else { 0.0 });
    let scaled = DMatrix::from_diagonal(&scale) * covariance_of_means * DMatrix::from_diagonal(&scale);
    let eigen = SymmetricEigen::new(scaled);
    let mut order: Vec<usize> = (0..MOST).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let first = eigen.eigenvalues[order[0]];
    let known = order.iter().filter(|at| eigen.eigenvalues[**at] > FLAT * first).count();
    ensure!(width <= known, "{width} random features: {} tiles have {known}", fit.len());
    let axes = DMatrix::from_fn(MOST, width, |feature, k| {
        let axis = eigen.eigenvectors.column(order[k]);
        // One of the two signs, whatever the machine.
        axis[feature] * axis[axis.iamax()].signum() * scale[feature] / eigen.eigenvalues[order[k]].sqrt()
    });
    let mut values = vec![0f32; n * width * parts];
    for tile in 0..n {
        let map = DMatrix::from_fn(parts, MOST, |part, feature| {
            f64::from(raw[(tile * MOST + feature) * parts + part]) - middle[feature]
        });
        let projected = map * &axes;
        for (to, from) in values[tile * width * parts..][..width * parts].iter_mut().zip(projected.iter()) {
            *to = *from as f32;
        }
    }
    Ok(values)
}

/// Of the rows.
fn covariance(rows: &DMatrix<f64>) -> DMatrix<f64> {
    let mean = rows.row_mean();
    let centred = DMatrix::from_fn(rows.nrows(), rows.ncols(), |i, j| rows[(i, j)] - mean[j]);
    centred.tr_mul(&centred) / rows.nrows() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use nadir_formats::Pixels;
    use rand::SeedableRng;

    const PIXELS: usize = 16;

    /// Tiles of two bands, each a texture of its own.
    fn tiles(n: usize) -> (Tiles, Vec<BandCard>) {
        let mut random = StdRng::seed_from_u64(3);
        let mut values = Vec::new();
        for _ in 0..n {
            let [fx, fy, level, noise] = std::array::from_fn(|_| random.random_range(0.1f32..1.5));
            for band in 0..2 {
                for at in 0..PIXELS * PIXELS {
                    let (y, x) = ((at / PIXELS) as f32, (at % PIXELS) as f32);
                    let wave = (fx * x + fy * y + band as f32).sin();
                    values.push(level + wave + noise * random.random_range(-1.0..1.0f32));
                }
            }
        }
        let card = |name: &str| BandCard {
            name: name.into(),
            unit: "1".into(),
            mean: 0.8,
            std: 1.2,
            no_data: None,
            saturation: None,
        };
        (Tiles { shape: [n, 2, PIXELS, PIXELS], pixels: Pixels::F32(values) }, vec![card("B4"), card("B3")])
    }

    #[test]
    fn answers_are_those_of_the_definition() {
        let (tiles, bands) = tiles(20);
        let filters =
            Filters::draw(&tiles, &bands, &(0..tiles.len()).collect::<Vec<_>>(), &mut StdRng::seed_from_u64(1))
                .unwrap();
        let x = normalised(&tiles, &bands, &[(4, AS_IS)], 0.0);
        let answers = filters.answers(&x, PIXELS, 8);
        let reach = (SIDE / 2) as isize;
        for (feature, part) in [(0, 0), (7, 1), (PATCHES - 1, 2), (PATCHES + 5, 3)] {
            let (mut sum, mut count) = (0.0, 0.0);
            for y in (part / 2 * 8..).take(8).filter(|y| (reach..PIXELS as isize - reach).contains(y)) {
                for x_ in (part % 2 * 8..).take(8).filter(|x| (reach..PIXELS as isize - reach).contains(x)) {
                    for symmetry in 0..8 {
                        let to = symmetry * PATCHES + feature % PATCHES;
                        let mut answer = f64::from(filters.bias[to]);
                        for at in 0..2 * SIDE * SIDE {
                            let (band, dy, dx) = (at / (SIDE * SIDE), at % (SIDE * SIDE) / SIDE, at % SIDE);
                            let (py, px) = (y as usize + dy - SIDE / 2, x_ as usize + dx - SIDE / 2);
                            answer += f64::from(filters.weight[at * 8 * PATCHES + to])
                                * f64::from(x[(band * PIXELS + py) * PIXELS + px]);
                        }
                        let sign = if feature < PATCHES { 1.0 } else { -1.0 };
                        sum += (sign * answer - f64::from(THRESHOLD)).max(0.0);
                        count += 1.0;
                    }
                }
            }
            let (is, should) = (f64::from(answers[feature * 4 + part as usize]), sum / count);
            assert!((is - should).abs() < 1e-4 * should.max(0.01), "{feature} {part}: {is} {should}");
        }
    }

    /// Pixels beside each other are alike; answers of whitened filters are hardly, and vary by about one.
    #[test]
    fn whitened_filters_do_not_see_the_same() {
        let (tiles, bands) = tiles(60);
        let all: Vec<_> = (0..tiles.len()).collect();
        let filters = Filters::draw(&tiles, &bands, &all, &mut StdRng::seed_from_u64(1)).unwrap();
        let (mut answers, mut pixels) = (vec![Vec::new(); PATCHES], vec![Vec::new(); PATCHES]);
        for tile in 0..tiles.len() {
            let x = normalised(&tiles, &bands, &[(tile, AS_IS)], 0.0);
            for (top, left) in (0..30).map(|place| (place % 10, place * 7 % 10)) {
                let patch = |at: usize| {
                    let (band, y, x_) = (at / (SIDE * SIDE), at % (SIDE * SIDE) / SIDE, at % SIDE);
                    x[(band * PIXELS + top + y) * PIXELS + left + x_]
                };
                for to in 0..PATCHES {
                    let weight = |at: usize| filters.weight[at * 8 * PATCHES + to];
                    let sum: f32 = (0..2 * SIDE * SIDE).map(|at| weight(at) * patch(at)).sum();
                    answers[to].push(f64::from(filters.bias[to] + sum));
                    pixels[to].push(f64::from(patch(to)));
                }
            }
        }
        let covariance = |a: &[f64], b: &[f64]| {
            let [of_a, of_b] = [a, b].map(|v| v.iter().sum::<f64>() / v.len() as f64);
            a.iter().zip(b).map(|(a, b)| (a - of_a) * (b - of_b)).sum::<f64>() / a.len() as f64
        };
        // Between each and the next, without signs, on average.
        let alike = |all: &[Vec<f64>]| {
            let of = |pair: &[Vec<f64>]| {
                let [own, other] = [0, 1].map(|i| covariance(&pair[i], &pair[i]));
                covariance(&pair[0], &pair[1]).abs() / (own * other).sqrt()
            };
            all.windows(2).map(of).sum::<f64>() / (all.len() - 1) as f64
        };
        let (of_answers, of_pixels) = (alike(&answers), alike(&pixels));
        assert!(of_answers < 0.5 * of_pixels, "{of_answers} {of_pixels}");
        let variance = answers.iter().map(|a| covariance(a, a)).sum::<f64>() / PATCHES as f64;
        assert!((0.5..1.5).contains(&variance), "{variance}");
    }

    #[test]
    fn components_have_unit_variance_and_turn_with_the_tile() {
        let (tiles, bands) = tiles(200);
        let (width, all) = (12, (0..200).collect::<Vec<_>>());
        let features = RandomFeatures::new(&tiles, &bands, &all, 8, width, 1).unwrap();
        let draws: Vec<_> = (0..200).map(|tile| (tile, AS_IS)).collect();
        let maps = features.batch(&draws).unwrap();
        assert_eq!(maps.dims(), [200, width, 2, 2]);
        let means: Vec<Vec<f32>> = maps.flatten_from(2).unwrap().mean(2).unwrap().to_vec2().unwrap();
        for i in 0..width {
            assert!(means.iter().map(|row| f64::from(row[i])).sum::<f64>().abs() < 1e-2);
            for j in 0..width {
                let c = means.iter().map(|row| f64::from(row[i] * row[j])).sum::<f64>() / 200.0;
                assert!((c - f64::from(u8::from(i == j))).abs() < 1e-3, "{i} {j}: {c}");
            }
        }
        // The features of a turned tile are the turned features.
        let filters = Filters::draw(&tiles, &bands, &all, &mut generator(1, Stream::Filters, 0)).unwrap();
        for symmetry in 0..8 {
            let turned = filters.answers(&normalised(&tiles, &bands, &[(7, symmetry)], 0.0), PIXELS, 8);
            let plain = filters.answers(&normalised(&tiles, &bands, &[(7, AS_IS)], 0.0), PIXELS, 8);
            for at in 0..turned.len() {
                let from = at / 4 * 4 + source(symmetry, 2, at % 4 / 2, at % 2);
                assert!((turned[at] - plain[from]).abs() < 1e-4, "{symmetry}: {} {}", turned[at], plain[from]);
            }
            let batch: Vec<f32> = features.batch(&[(7, symmetry)]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let plain: Vec<f32> = features.batch(&[(7, AS_IS)]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(
                (0..batch.len()).all(|at| batch[at] == plain[at / 4 * 4 + source(symmetry, 2, at % 4 / 2, at % 2)])
            );
        }
    }

    #[test]
    fn what_has_no_features_is_refused() {
        let (some, bands) = tiles(4);
        let of = |tiles: &Tiles, part, width| {
            RandomFeatures::new(tiles, &bands, &[0, 1, 2, 3], part, width, 1).unwrap_err().to_string()
        };
        assert!(of(&some, 8, 97).contains("must be 1 to 96"));
        assert!(of(&some, 8, 0).contains("must be 1 to 96"));
        assert!(of(&some, 4, 2).contains("parts of 4 pixels"));
        assert!(of(&some, 12, 2).contains("16 pixels are not whole parts of 12"));
        assert!(of(&some, 8, 12).contains("12 random features take more than 4 tiles"));
        let flat = Tiles { shape: [4, 2, 16, 16], pixels: Pixels::F32(vec![1.0; 4 * 2 * 256]) };
        assert!(of(&flat, 8, 2).contains("no pixel of the tiles differs"));
    }
}
