//! Smaller forms of an embedding.
//!
//! | form | bytes | error |
//! | --- | --- | --- |
//! | int8 with one f32 scale | D + 4 | at most half the scale a value, the scale being the largest magnitude / 127 |
//! | binary code: the signs about a centre | D / 8, rounded up | the cosine of two embeddings is about cos(pi x differing bits / D) |
//!
//! Forms that are fitted to a model are its [products](super::products).

/// Bytes of the binary code of a `dimension`-dimensional embedding.
pub const fn code_bytes(dimension: usize) -> usize {
    dimension.div_ceil(8)
}

/// Bytes of the int8 form of a `dimension`-dimensional embedding.
pub const fn int8_bytes(dimension: usize) -> usize {
    dimension + 4
}

/// Why an embedding could not be coded or decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// A slice has another length than the dimension asks for.
    #[error("{what} has length {found}, expected {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length it should have.
        expected: usize,
    },
    /// The embedding holds NaN or infinity.
    #[error("value {index} of the embedding is not finite")]
    NotFinite {
        /// The first such value.
        index: usize,
    },
    /// The product has no number, or more than the model file holds.
    #[error("the product has {found} numbers, limits are 1 to {most}")]
    Numbers {
        /// Numbers asked for.
        found: usize,
        /// The most there are.
        most: usize,
    },
    /// The scale is negative or not finite: no encoder wrote it.
    #[error("the scale of an int8 embedding is not possible")]
    Scale,
}

pub(super) fn length(what: &'static str, found: usize, expected: usize) -> Result<(), CodeError> {
    if found == expected { Ok(()) } else { Err(CodeError::Length { what, found, expected }) }
}

pub(super) fn finite(embedding: &[f32]) -> Result<(), CodeError> {
    match embedding.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(CodeError::NotFinite { index }),
        None => Ok(()),
    }
}

/// Sets bit `d % 8` of byte `d / 8` of `code` where number `d` of the embedding lies above that of the centre; unused high bits are 0.
///
/// `code` has [`code_bytes`] bytes, `centre` as many numbers as the embedding.
pub fn binary_code(
    embedding: &[f32],
    mut centre: impl ExactSizeIterator<Item = f32>,
    code: &mut [u8],
) -> Result<(), CodeError> {
    length("the centre", centre.len(), embedding.len())?;
    length("the code", code.len(), code_bytes(embedding.len()))?;
    finite(embedding)?;
    for (byte, values) in code.iter_mut().zip(embedding.chunks(8)) {
        let above = values.iter().zip(&mut centre).map(|(v, c)| u8::from(*v > c));
        *byte = above.enumerate().fold(0, |bits, (d, above)| bits | above << d);
    }
    Ok(())
}

/// Number of bits in which two codes of one length differ.
pub fn hamming(a: &[u8], b: &[u8]) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

/// Writes the f32 scale, little-endian, then one i8 a dimension: value = scale x i8.
///
/// `coded` has [`int8_bytes`] bytes. The i8 are rounded half to even and lie in -127 to 127.
pub fn encode_int8(embedding: &[f32], coded: &mut [u8]) -> Result<(), CodeError> {
    let expected = int8_bytes(embedding.len());
    let wrong = CodeError::Length { what: "the int8 embedding", found: coded.len(), expected };
    length("the int8 embedding", coded.len(), expected)?;
    finite(embedding)?;
    let scale = embedding.iter().fold(0f32, |max, v| max.max(v.abs())) / 127.0;
    let (head, values) = coded.split_first_chunk_mut::<4>().ok_or(wrong)?;
    *head = scale.to_le_bytes();
    for (coded, v) in values.iter_mut().zip(embedding) {
        // 0 / 0 for the zero vector: `as` turns NaN into 0.
        *coded = (libm::rintf(v / scale).clamp(-127.0, 127.0) as i8).cast_unsigned();
    }
    Ok(())
}

/// Reads what [`encode_int8`] wrote.
pub fn decode_int8(coded: &[u8], embedding: &mut [f32]) -> Result<(), CodeError> {
    let expected = int8_bytes(embedding.len());
    let wrong = CodeError::Length { what: "the int8 embedding", found: coded.len(), expected };
    length("the int8 embedding", coded.len(), expected)?;
    let (head, values) = coded.split_first_chunk::<4>().ok_or(wrong)?;
    let scale = f32::from_le_bytes(*head);
    if !(0.0..=f32::MAX / 127.0).contains(&scale) {
        return Err(CodeError::Scale);
    }
    for (v, coded) in embedding.iter_mut().zip(values) {
        *v = scale * f32::from(coded.cast_signed());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::triage::test_random::Random;

    #[test]
    fn int8_is_within_half_a_step() {
        let mut random = Random(3);
        for dimension in [1, 7, 128, 320] {
            for magnitude in [1e-30, 1e-3, 1.0, 1e5, 3e38] {
                let embedding: Vec<f32> = (0..dimension).map(|_| random.signed() * magnitude).collect();
                let mut coded = vec![0; int8_bytes(dimension)];
                encode_int8(&embedding, &mut coded).unwrap();
                let mut back = vec![0.0; dimension];
                decode_int8(&coded, &mut back).unwrap();
                let largest = embedding.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
                for (v, b) in embedding.iter().zip(&back) {
                    let error = (f64::from(*v) - f64::from(*b)).abs();
                    assert!(error <= largest / 127.0 * 0.5001, "{v} came back as {b}");
                }
            }
        }
    }

    #[test]
    fn int8_edges() {
        let mut coded = [9; 7];
        encode_int8(&[0.0; 3], &mut coded).unwrap();
        assert_eq!(coded, [0; 7]);
        encode_int8(&[-2.54, 2.54, 0.03], &mut coded).unwrap();
        assert_eq!(coded[4..], [129, 127, 2]);
        let mut back = [0.0; 3];
        assert_eq!(encode_int8(&[0.0, f32::NAN, 0.0], &mut coded), Err(CodeError::NotFinite { index: 1 }));
        assert_eq!(encode_int8(&[0.0; 4], &mut coded).unwrap_err(), decode_int8(&coded, &mut [0.0; 4]).unwrap_err());
        assert_eq!(decode_int8(&[0, 0, 0xc0, 0x7f, 1, 1, 1], &mut back), Err(CodeError::Scale));
        assert_eq!(decode_int8(&[0, 0, 0, 0xbf, 1, 1, 1], &mut back), Err(CodeError::Scale));
        assert!(decode_int8(&[], &mut []).is_err());
    }

    #[test]
    fn codes_hold_the_signs() {
        let embedding = [1.0, -1.0, 0.0, 2.0, 5.0, 5.0, -5.0, -5.0, 3.0, 0.5];
        let centre = [0.0, 0.0, 0.0, 3.0, 0.0, 0.0, -9.0, 0.0, 0.0, 0.5];
        let mut code = [0; 2];
        let centre = || centre.into_iter();
        binary_code(&embedding, centre(), &mut code).unwrap();
        assert_eq!(code, [0b0111_0001, 0b01]);
        assert_eq!(hamming(&code, &[0, 0]), 5);
        assert!(binary_code(&embedding, centre().skip(1), &mut code).is_err());
        assert!(binary_code(&embedding, centre(), &mut [0; 3]).is_err());
        assert!(binary_code(&[f32::INFINITY], [0.0].into_iter(), &mut [0]).is_err());
    }

    /// The share of differing signs of two vectors under random rotations is their angle over pi (Goemans and Williamson).
    #[test]
    fn differing_bits_tell_the_angle() {
        let mut random = Random(5);
        let dimension = 4096;
        let centre = || core::iter::repeat_n(0.0, dimension);
        for angle in [0.3f32, 1.0, 2.0] {
            let (mut a, mut b) = (vec![], vec![]);
            for _ in 0..dimension {
                let (x, y) = (random.normal(), random.normal());
                a.push(x);
                b.push(x * angle.cos() + y * angle.sin());
            }
            let mut codes = [vec![0; code_bytes(dimension)], vec![0; code_bytes(dimension)]];
            binary_code(&a, centre(), &mut codes[0]).unwrap();
            binary_code(&b, centre(), &mut codes[1]).unwrap();
            let share = hamming(&codes[0], &codes[1]) as f32 / dimension as f32;
            assert!((share * core::f32::consts::PI - angle).abs() < 0.1, "{share} for {angle}");
        }
    }
}
