//! Centre, scales and principal components from the embeddings of training tiles.

use anyhow::{Result, ensure};
use nadir::model::products::{INT8_SHIFT, MAX_FRACTION_BITS, MAX_MULTIPLIER, PCA_SHIFT};
use nadir::model::{KIND_TENSOR, Model, Precision};
use nadir_formats::Matrix;
use nalgebra::{DMatrix, SymmetricEigen};

/// Largest magnitude of a code.
const LEVELS: f64 = 127.0;

/// What a model's file stores of its products.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// Fraction bits of the fixed point.
    pub fraction_bits: u32,
    /// Mean embedding in fixed point.
    pub centre: Vec<i16>,
    /// One a number.
    pub multipliers: Vec<u32>,
    /// One a component.
    pub pca_multipliers: Vec<u32>,
    /// `[components, dimension]`.
    pub matrix: Vec<i8>,
    /// Share of the variance that the first so many components explain together, a number for each component.
    pub explained: Vec<f64>,
}

impl Fitted {
    /// The section, as `docs/model-file.md` has it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::from(self.fraction_bits.to_le_bytes());
        bytes.extend(self.multipliers.iter().chain(&self.pca_multipliers).flat_map(|m| m.to_le_bytes()));
        bytes.extend(self.centre.iter().flat_map(|c| c.to_le_bytes()));
        bytes.extend(self.matrix.iter().map(|w| w.cast_unsigned()));
        bytes
    }
}

/// Fraction bits for the embeddings of a model: of an int8 model those of its head, so that nothing is rounded; of others the most with which
/// twice the largest magnitude of `embeddings` fits 16 bits.
pub fn fraction_bits(model: &Model<'_>, embeddings: &Matrix) -> u32 {
    if model.precision() == Precision::Int8 {
        let tensors =
            (0..model.section_count()).take_while(|&i| model.section_entry(i).is_some_and(|e| e.kind == KIND_TENSOR));
        let constants: &[i32] = tensors.last().map_or(&[], |head| model.section(head));
        return constants.last().map_or(0, |&bits| bits as u32);
    }
    let largest = embeddings.data.iter().fold(0f32, |max, v| max.max(v.abs()));
    let fits = |bits: &u32| 2.0 * f64::from(largest) * f64::from(*bits).exp2() <= f64::from(i16::MAX);
    (0..=MAX_FRACTION_BITS).rev().find(fits).unwrap_or(0)
}

/// Fits products with so many principal components to the rows `rows` of `embeddings`.
///
/// Scales are chosen so that the largest magnitude among these rows is 127; what lies beyond on other tiles saturates.
///
/// # Errors
/// If there are fewer than two rows, a value is not finite, or more components are asked for than there are numbers or rows less one.
pub fn fit(embeddings: &Matrix, rows: &[usize], components: usize, fraction_bits: u32) -> Result<Fitted> {
    let dimension = embeddings.columns;
    let most = dimension.min(rows.len().saturating_sub(1));
    ensure!(rows.len() >= 2, "{} tiles to fit on, at least 2 are needed", rows.len());
    ensure!(
        components <= most,
        "{components} principal components, {} tiles of {dimension} numbers give at most {most}",
        rows.len()
    );
    let bad = rows.iter().find(|&&row| embeddings.row(row).iter().any(|v| !v.is_finite()));
    ensure!(bad.is_none(), "the embedding of tile {} is not finite", bad.copied().unwrap_or_default());

    // In units of the fixed point, as the runtime sees them.
    let unit = f64::from(fraction_bits).exp2();
    let fixed = |v: f32| (f64::from(v) * unit).round_ties_even().clamp(-32768.0, 32767.0);
    let values = |row: &usize| embeddings.row(*row).iter().map(|&v| fixed(v));
    let mut centre = vec![0.0; dimension];
    for row in rows {
        centre.iter_mut().zip(values(row)).for_each(|(sum, v)| *sum += v / rows.len() as f64);
    }
    let centre: Vec<f64> = centre.into_iter().map(f64::round).collect();
    let centred = |row: &usize| -> Vec<f64> { values(row).zip(&centre).map(|(v, c)| v - c).collect() };
    let data = DMatrix::from_row_iterator(rows.len(), dimension, rows.iter().flat_map(centred));
    let largest = |column: &[f64]| column.iter().fold(0f64, |max, v| max.max(v.abs()));
    let multipliers = data.column_iter().map(|column| multiplier(largest(column.as_slice()), INT8_SHIFT)).collect();

    let (mut matrix, mut pca_multipliers, mut explained) = (Vec::new(), Vec::new(), Vec::new());
    if components > 0 {
        let eigen = SymmetricEigen::new(data.tr_mul(&data) / rows.len() as f64);
        let mut order: Vec<usize> = (0..dimension).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
        let total: f64 = eigen.eigenvalues.iter().sum();
        let mut so_far = 0.0;
        for &index in &order[..components] {
            let row = whole(eigen.eigenvectors.column(index).as_slice());
            let component = &data * DMatrix::from_column_slice(dimension, 1, &row);
            pca_multipliers.push(multiplier(largest(component.as_slice()), PCA_SHIFT));
            matrix.extend(row.iter().map(|&w| w as i8));
            so_far += eigen.eigenvalues[index].max(0.0);
            explained.push(if total > 0.0 { so_far / total } else { 1.0 });
        }
    }
    let centre = centre.into_iter().map(|c| c as i16).collect();
    Ok(Fitted { fraction_bits, centre, multipliers, pca_multipliers, matrix, explained })
}

/// The multiplier by which `largest` becomes 127.
fn multiplier(largest: f64, shift: u32) -> u32 {
    let multiplier = LEVELS * f64::from(shift).exp2() / largest.max(1.0);
    multiplier.round().clamp(1.0, f64::from(MAX_MULTIPLIER)) as u32
}

/// A direction as whole numbers up to 127. Of the two signs the one whose largest number is positive.
fn whole(direction: &[f64]) -> Vec<f64> {
    let largest = direction.iter().fold(0f64, |max, &v| if v.abs() > max.abs() { v } else { max });
    let scale = if largest == 0.0 { 0.0 } else { LEVELS / largest };
    direction.iter().map(|v| (v * scale).round()).collect()
}
