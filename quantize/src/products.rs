//! Products of embeddings: fitted on real tiles, stored in the model's file, and turned back into numbers on the ground.
//!
//! The runtime encodes ([`nadir::triage::products`]); `docs/products.md` says what each product is, `docs/integer-arithmetic.md`, section 10, how it
//! is computed. All that is stored are integers, and a code's real value follows from the same integers.

pub mod change;
mod fit;
pub mod measure;
mod text;

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, ensure};
use nadir::model::products::{INT8_SHIFT, PCA_SHIFT, Products};
use nadir::model::{Dtype, KIND_PRODUCTS, KIND_SIGNATURE, Model};
use nadir::triage::products::Product;
use nadir_formats::Matrix;

use crate::writer::{Section, write_file};

pub use fit::{Fitted, fit, fraction_bits};
pub use text::{json, text};

/// A product by the name that people write: `int8`, `binary`, `pca-32`, `prefix-64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// All numbers.
    Int8,
    /// The first so many of them.
    Prefix(usize),
    /// The signs.
    Binary,
    /// So many principal components.
    Pca(usize),
}

impl Name {
    /// The product of embeddings of `dimension` numbers.
    pub fn product(self, dimension: usize) -> Product {
        match self {
            Name::Int8 => Product::Int8(dimension),
            Name::Prefix(numbers) => Product::Int8(numbers),
            Name::Binary => Product::Binary,
            Name::Pca(numbers) => Product::Pca(numbers),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Int8 => f.pad("int8"),
            Name::Binary => f.pad("binary"),
            Name::Prefix(numbers) => f.pad(&format!("prefix-{numbers}")),
            Name::Pca(numbers) => f.pad(&format!("pca-{numbers}")),
        }
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = |digits: &str| digits.parse().ok().filter(|&n: &usize| n > 0);
        match text.split_once('-') {
            None if text == "int8" => Some(Name::Int8),
            None if text == "binary" => Some(Name::Binary),
            Some(("pca", digits)) => numbers(digits).map(Name::Pca),
            Some(("prefix", digits)) => numbers(digits).map(Name::Prefix),
            _ => None,
        }
        .ok_or_else(|| format!("{text:?} is no product: int8, binary, pca-N or prefix-N"))
    }
}

/// The codes of embeddings, `[rows, bytes]`, row-major.
///
/// # Errors
/// If the embeddings are not the model's, or the file does not hold so many numbers.
pub fn encode(products: &Products<'_>, product: Product, embeddings: &Matrix) -> Result<Vec<u8>> {
    let bytes = code_bytes(products, product)?;
    let mut codes = vec![0; embeddings.rows * bytes];
    for (row, code) in codes.chunks_exact_mut(bytes).enumerate() {
        products.encode(product, embeddings.row(row), code)?;
    }
    Ok(codes)
}

/// Bytes of a code of `product`.
///
/// # Errors
/// If the file does not hold so many numbers.
fn code_bytes(products: &Products<'_>, product: Product) -> Result<usize> {
    let (numbers, most) = match product {
        Product::Int8(numbers) => (numbers, products.dimension()),
        Product::Pca(numbers) => (numbers, products.components()),
        Product::Binary => return Ok(product.bytes(products.dimension())),
    };
    ensure!((1..=most).contains(&numbers), "the product has {numbers} numbers, limits are 1 to {most}");
    Ok(numbers)
}

/// What codes `[rows, bytes]` stand for: of int8 and a prefix their numbers, of principal components the whole embedding, of binary -1 and 1.
///
/// # Errors
/// If a row of so many bytes is no code of this product.
pub fn decode(products: &Products<'_>, product: Product, codes: &[u8], bytes: usize) -> Result<Matrix> {
    let (dimension, expected) = (products.dimension(), code_bytes(products, product)?);
    ensure!(bytes == expected, "codes have {bytes} bytes, the product has {expected}");
    let unit = f64::from(products.fraction_bits()).exp2().recip();
    let centre: Vec<f64> = products.centre().map(f64::from).collect();
    let rows: Vec<Vec<f64>> = products.rows().map(|row| row.map(f64::from).collect()).collect();
    // The rows are orthogonal but for their rounding: a component over the square of its row's length is its coefficient.
    let scales: Vec<f64> = match product {
        Product::Int8(_) => products.multipliers().map(|m| f64::from(INT8_SHIFT).exp2() / f64::from(m)).collect(),
        _ => rows
            .iter()
            .zip(products.pca_multipliers())
            .map(|(row, m)| {
                f64::from(PCA_SHIFT).exp2() / f64::from(m) / row.iter().map(|w| w * w).sum::<f64>().max(1.0)
            })
            .collect(),
    };
    let number = |byte: &u8| f64::from(byte.cast_signed());
    let one = |code: &[u8]| -> Vec<f32> {
        match product {
            Product::Binary => {
                (0..dimension).map(|d| if code[d / 8] >> (d % 8) & 1 == 1 { 1.0 } else { -1.0 }).collect()
            }
            Product::Int8(_) => {
                let parts = code.iter().zip(&centre).zip(&scales);
                parts.map(|((q, c), s)| ((c + number(q) * s) * unit) as f32).collect()
            }
            Product::Pca(_) => {
                let mut sum = centre.clone();
                for ((q, row), s) in code.iter().zip(&rows).zip(&scales) {
                    sum.iter_mut().zip(row).for_each(|(sum, w)| *sum += number(q) * s * w);
                }
                sum.iter().map(|v| (v * unit) as f32).collect()
            }
        }
    };
    let data: Vec<f32> = codes.chunks_exact(bytes).flat_map(one).collect();
    let columns = if let Product::Int8(numbers) = product { numbers } else { dimension };
    Ok(Matrix { rows: data.len() / columns, columns, data })
}

/// The file of `model` with these products in place of those that it had. A signature is left out, as it would be wrong; all else stays.
///
/// # Errors
/// If the products are not of this model's embeddings.
pub fn store(model: &Model<'_>, fitted: &Fitted) -> Result<Vec<u8>> {
    let mut sections = Section::all_of(model);
    sections.retain(|section| section.kind != KIND_PRODUCTS && section.kind != KIND_SIGNATURE);
    let at = sections.iter().take_while(|section| section.kind < KIND_PRODUCTS).count();
    sections.insert(at, Section { kind: KIND_PRODUCTS, dtype: Dtype::I8, bytes: fitted.to_bytes() });
    write_file(model.header(), &sections, model.has_parity())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_have_names() {
        for name in ["int8", "binary", "pca-32", "prefix-64"] {
            assert_eq!(name.parse::<Name>().unwrap().to_string(), name);
        }
        for name in ["", "int", "pca", "pca-0", "pca--1", "prefix-", "int8-3"] {
            assert!(name.parse::<Name>().unwrap_err().contains("is no product"), "{name}");
        }
    }
}
