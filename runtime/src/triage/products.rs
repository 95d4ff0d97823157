//! Products: smaller forms of an embedding that were fitted to a model on real tiles and lie in its file.
//!
//! | product | bytes | what |
//! | --- | --- | --- |
//! | [`Product::Int8`] of N | N | the first N numbers of the embedding about its centre, each with a scale of its own; all of them, or a prefix |
//! | [`Product::Binary`] | D / 8, rounded up | the signs about the centre ([`codes::binary_code`]) |
//! | [`Product::Pca`] of N | N | the N numbers of most variance, each with a scale of its own |
//!
//! All arithmetic after one conversion of the embedding to fixed point is on integers: equal embeddings give equal bytes on every processor
//! (`docs/integer-arithmetic.md`, section 10). The numbers of a product of N are the first N of a longer one. What a code stands for on the
//! ground, `nadir_quantize::products` computes from the same integers.

use super::codes::{self, CodeError, code_bytes, finite, length};
use crate::model::products::{INT8_SHIFT, PCA_SHIFT, Products};

/// A form of an embedding of D numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// The first so many numbers, 1 to D, an i8 each.
    Int8(usize),
    /// One bit a number.
    Binary,
    /// The first so many principal components, 1 to [`Products::components`], an i8 each.
    Pca(usize),
}

impl Product {
    /// Bytes of the product of an embedding of `dimension` numbers.
    pub const fn bytes(self, dimension: usize) -> usize {
        match self {
            Product::Int8(numbers) | Product::Pca(numbers) => numbers,
            Product::Binary => code_bytes(dimension),
        }
    }
}

impl Products<'_> {
    /// Writes a product of `embedding` to `code`, which has [`Product::bytes`] bytes. O(D), for principal components O(N D).
    ///
    /// # Errors
    /// If a length is wrong, the product has more numbers than the file holds or none, or the embedding is not finite.
    pub fn encode(&self, product: Product, embedding: &[f32], code: &mut [u8]) -> Result<(), CodeError> {
        length("the embedding", embedding.len(), self.dimension())?;
        let (numbers, most) = match product {
            Product::Binary => {
                // Exact: a number of 16 bits and a power of two.
                let unit = 1.0 / (1u32 << self.fraction_bits()) as f32;
                return codes::binary_code(embedding, self.centre().map(|c| f32::from(c) * unit), code);
            }
            Product::Int8(numbers) => (numbers, self.dimension()),
            Product::Pca(numbers) => (numbers, self.components()),
        };
        if numbers == 0 || numbers > most {
            return Err(CodeError::Numbers { found: numbers, most });
        }
        length("the code", code.len(), numbers)?;
        finite(embedding)?;
        if let Product::Int8(_) = product {
            let values = self.centred(embedding).zip(self.multipliers());
            code.iter_mut().zip(values).for_each(|(code, (y, m))| *code = narrow(y.into(), m, INT8_SHIFT));
        } else {
            for ((code, row), m) in code.iter_mut().zip(self.rows()).zip(self.pca_multipliers()) {
                let sum = row.zip(self.centred(embedding)).map(|(w, y)| i64::from(w) * i64::from(y)).sum();
                *code = narrow(sum, m, PCA_SHIFT);
            }
        }
        Ok(())
    }

    /// The embedding in fixed point less the centre, 17 bits.
    fn centred(&self, embedding: &[f32]) -> impl Iterator<Item = i32> {
        let unit = (1u32 << self.fraction_bits()) as f32;
        // `as` saturates; the product is exact but for an overflow to infinity.
        let fixed = move |&value: &f32| i32::from(libm::rintf(value * unit) as i16);
        embedding.iter().map(fixed).zip(self.centre()).map(|(x, centre)| x - i32::from(centre))
    }
}

/// `value * multiplier >> shift`, rounded half up, saturated to -127..=127. A sum of [`MAX_CHANNELS`] products of 8 and 17 bits is below 2^35, its
/// product with a multiplier below 2^63.
fn narrow(value: i64, multiplier: u32, shift: u32) -> u8 {
    let scaled = (value * i64::from(multiplier) + (1 << (shift - 1))) >> shift;
    (scaled.clamp(-127, 127) as i8).cast_unsigned()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::model::MAX_CHANNELS;
    use crate::model::products::{MAX_MULTIPLIER, section_bytes};
    use crate::triage::test_random::Random;

    /// A section with random numbers of the whole range.
    fn section(random: &mut Random, dimension: usize, components: usize, fraction_bits: u32) -> Vec<u8> {
        let mut bytes = Vec::from(fraction_bits.to_le_bytes());
        for _ in 0..dimension + components {
            bytes.extend(((random.bits() >> (36 + random.below(28))) as u32 + 1).to_le_bytes());
        }
        bytes.extend((0..dimension).flat_map(|_| (random.bits() as i16).to_le_bytes()));
        bytes.extend((0..dimension * components).map(|_| random.bits() as u8));
        bytes
    }

    fn encoded(products: &Products<'_>, product: Product, embedding: &[f32]) -> Vec<i8> {
        let mut code = vec![0; product.bytes(embedding.len())];
        products.encode(product, embedding, &mut code).unwrap();
        code.into_iter().map(u8::cast_signed).collect()
    }

    /// Against exact arithmetic on 128 bits and float64, at every magnitude that an embedding can have.
    #[test]
    fn codes_are_those_of_wider_arithmetic() {
        let mut random = Random(11);
        for case in 0..if cfg!(miri) { 2 } else { 60 } {
            let (dimension, components) = (1 + random.below(40) as usize, random.below(20) as usize);
            let components = components.min(dimension);
            let bits = random.below(25) as u32;
            let bytes = section(&mut random, dimension, components, bits);
            let products = Products::read(&bytes, dimension).unwrap();
            let magnitude = [1e-3, 1.0, 30.0, 1e6, 3e38][case % 5];
            let embedding: Vec<f32> = (0..dimension).map(|_| random.signed() * magnitude).collect();
            let fixed = |v: f32| (f64::from(v) * f64::from(1 << bits)).round_ties_even().clamp(-32768.0, 32767.0);
            let y: Vec<i128> =
                embedding.iter().zip(products.centre()).map(|(&v, c)| fixed(v) as i128 - i128::from(c)).collect();
            let narrow = |v: i128, m: u32, shift: u32| {
                let half = 1i128 << (shift - 1);
                (v * i128::from(m) + half).div_euclid(2 * half).clamp(-127, 127) as i8
            };
            let expected: Vec<i8> = y.iter().zip(products.multipliers()).map(|(&y, m)| narrow(y, m, 28)).collect();
            assert_eq!(encoded(&products, Product::Int8(dimension), &embedding), expected);
            assert_eq!(encoded(&products, Product::Int8(1), &embedding), expected[..1]);
            let weights = &bytes[bytes.len() - components * dimension..];
            let pca: Vec<i8> = (0..components)
                .map(|j| {
                    let row = weights[j * dimension..].iter().map(|&w| i128::from(w as i8));
                    let sum = row.zip(&y).map(|(w, y)| w * y).sum();
                    narrow(sum, products.pca_multipliers().nth(j).unwrap(), 36)
                })
                .collect();
            for n in 1..=components {
                assert_eq!(encoded(&products, Product::Pca(n), &embedding), pca[..n]);
            }
        }
    }

    #[test]
    fn the_largest_sums_do_not_overflow() {
        let dimension = MAX_CHANNELS;
        let mut bytes = Vec::from(0u32.to_le_bytes());
        bytes.extend([MAX_MULTIPLIER.to_le_bytes()].repeat(dimension + 1).concat());
        bytes.extend(i16::MIN.to_le_bytes().repeat(dimension));
        bytes.extend([0x80].repeat(dimension));
        let products = Products::read(&bytes, dimension).unwrap();
        assert_eq!(encoded(&products, Product::Pca(1), &vec![f32::MAX; dimension]), [-127]);
        assert_eq!(encoded(&products, Product::Int8(1), &vec![f32::MAX; dimension]), [127]);
        assert_eq!(encoded(&products, Product::Int8(1), &vec![f32::MIN; dimension]), [0]);
    }

    /// The code of triage and the binary product are one thing.
    #[test]
    fn binary_products_are_the_codes_of_triage() {
        let mut random = Random(12);
        let bytes = section(&mut random, 19, 0, 12);
        let products = Products::read(&bytes, 19).unwrap();
        let centre: Vec<f32> = products.centre().map(|c| f32::from(c) / 4096.0).collect();
        let embedding: Vec<f32> =
            centre.iter().enumerate().map(|(i, c)| c + (i % 3) as f32 * f32::EPSILON - f32::EPSILON).collect();
        let (mut code, mut expected) = ([0; 3], [0; 3]);
        products.encode(Product::Binary, &embedding, &mut code).unwrap();
        codes::binary_code(&embedding, centre.iter().copied(), &mut expected).unwrap();
        assert_eq!(code, expected);
        assert!(code != [0; 3]);
    }

    #[test]
    fn wrong_sections_and_calls_are_refused() {
        let mut random = Random(13);
        let good = section(&mut random, 6, 3, 10);
        assert_eq!(good.len(), section_bytes(6, 3));
        let products = Products::read(&good, 6).unwrap();
        let field = |bytes: &[u8], dimension| Products::read(bytes, dimension).unwrap_err().field;
        assert_eq!(field(&good[1..], 6), "length");
        assert_eq!(field(&[], 6), "length");
        assert_eq!(field(&section(&mut random, 6, 7, 10), 6), "length");
        assert_eq!(field(&good, 0), "dimension");
        for (at, value, name) in [(0, 25u32, "fraction bits"), (8, 0, "multiplier"), (36, (1 << 28) + 1, "multiplier")]
        {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert_eq!(field(&bad, 6), name);
        }
        let error = |product, embedding: &[f32], bytes: usize| {
            products.encode(product, embedding, &mut vec![0; bytes]).unwrap_err()
        };
        assert_eq!(error(Product::Pca(4), &[0.0; 6], 4), CodeError::Numbers { found: 4, most: 3 });
        assert_eq!(error(Product::Int8(7), &[0.0; 6], 7), CodeError::Numbers { found: 7, most: 6 });
        assert_eq!(error(Product::Int8(0), &[0.0; 6], 0), CodeError::Numbers { found: 0, most: 6 });
        assert_eq!(error(Product::Pca(2), &[f32::NAN; 6], 2), CodeError::NotFinite { index: 0 });
        assert!(matches!(error(Product::Pca(2), &[0.0; 5], 2), CodeError::Length { found: 5, expected: 6, .. }));
        assert!(matches!(error(Product::Pca(2), &[0.0; 6], 3), CodeError::Length { found: 3, expected: 2, .. }));
        assert!(matches!(error(Product::Binary, &[0.0; 6], 2), CodeError::Length { found: 2, expected: 1, .. }));
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let mut random = Random(14);
        for _ in 0..if cfg!(miri) { 20 } else { 2000 } {
            let mut bytes: Vec<u8> = (0..random.below(200)).map(|_| random.bits() as u8).collect();
            for byte in bytes.iter_mut().filter(|_| random.below(4) != 0) {
                *byte &= 1;
            }
            let dimension = random.below(12) as usize;
            if let Ok(products) = Products::read(&bytes, dimension) {
                let embedding: Vec<f32> = (0..dimension).map(|_| random.normal() * 100.0).collect();
                encoded(&products, Product::Int8(dimension), &embedding);
            }
        }
    }
}
