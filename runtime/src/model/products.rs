//! The section of an embedding's products: centre, scales and principal components ([`crate::triage::products`] uses them).

use super::{KIND_PRODUCTS, MAX_CHANNELS, Model};

/// The most fraction bits of the fixed point.
pub const MAX_FRACTION_BITS: u32 = 24;
/// The largest multiplier; the least is 1.
pub const MAX_MULTIPLIER: u32 = 1 << 28;
/// By how many bits the product of a centred number and its multiplier is shifted.
pub const INT8_SHIFT: u32 = 28;
/// By how many bits the product of a component and its multiplier is shifted.
pub const PCA_SHIFT: u32 = 36;

/// A number of the section is beyond its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}, limits are {least} to {most}")]
pub struct ProductsError {
    /// Name of the field.
    pub field: &'static str,
    /// Its value.
    pub found: u64,
    /// The least value allowed.
    pub least: u64,
    /// The largest value allowed.
    pub most: u64,
}

/// Bytes of the section for embeddings of `dimension` numbers and so many principal components.
pub const fn section_bytes(dimension: usize, components: usize) -> usize {
    4 + 6 * dimension + components * (4 + dimension)
}

/// Components of a section of so many bytes, rounded down, at most `dimension`.
pub(crate) const fn components_in(bytes: u64, dimension: usize) -> usize {
    let components = bytes.saturating_sub(section_bytes(dimension, 0) as u64) / (4 + dimension as u64);
    if components < dimension as u64 { components as usize } else { dimension }
}

/// Centre, scales and principal components, borrowed from a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Products<'a> {
    fraction_bits: u32,
    multipliers: &'a [[u8; 4]],
    pca_multipliers: &'a [[u8; 4]],
    centre: &'a [[u8; 2]],
    matrix: &'a [u8],
}

impl<'a> Products<'a> {
    /// Reads a section as `docs/model-file.md` has it, at any alignment, for embeddings of `dimension` numbers, 1 to [`MAX_CHANNELS`].
    ///
    /// # Errors
    /// The first number that is beyond its limits.
    pub fn read(section: &'a [u8], dimension: usize) -> Result<Self, ProductsError> {
        within("dimension", dimension as u64, 1, MAX_CHANNELS as u64)?;
        let components = components_in(section.len() as u64, dimension);
        let expected = section_bytes(dimension, components) as u64;
        within("length", section.len() as u64, expected, expected)?;
        let read = |at: usize, bytes: usize| section.get(at..at + bytes).unwrap_or_default();
        let pca = 4 + 4 * dimension;
        let centre = pca + 4 * components;
        let products = Self {
            fraction_bits: section.first_chunk().map_or(0, |bits| u32::from_le_bytes(*bits)),
            multipliers: read(4, 4 * dimension).as_chunks().0,
            pca_multipliers: read(pca, 4 * components).as_chunks().0,
            centre: read(centre, 2 * dimension).as_chunks().0,
            matrix: read(centre + 2 * dimension, components * dimension),
        };
        within("fraction bits", products.fraction_bits.into(), 0, MAX_FRACTION_BITS.into())?;
        for multiplier in products.multipliers().chain(products.pca_multipliers()) {
            within("multiplier", multiplier.into(), 1, MAX_MULTIPLIER.into())?;
        }
        Ok(products)
    }

    /// Numbers of the embedding.
    pub fn dimension(&self) -> usize {
        self.centre.len()
    }

    /// Principal components that the file holds; may be 0.
    pub fn components(&self) -> usize {
        self.pca_multipliers.len()
    }

    /// Fraction bits of the fixed point in which embedding and centre are taken.
    pub fn fraction_bits(&self) -> u32 {
        self.fraction_bits
    }

    /// The centre in fixed point, one value a number.
    pub fn centre(&self) -> impl ExactSizeIterator<Item = i16> + use<'a> {
        self.centre.iter().map(|bytes| i16::from_le_bytes(*bytes))
    }

    /// Multiplier of each number: 2^[`INT8_SHIFT`] over its scale in units of the fixed point.
    pub fn multipliers(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.multipliers.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// Multiplier of each component: 2^[`PCA_SHIFT`] over its scale.
    pub fn pca_multipliers(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.pca_multipliers.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// The rows of the matrix, one a component, that of most variance first.
    pub fn rows(&self) -> impl Iterator<Item = impl ExactSizeIterator<Item = i8> + use<'a>> + use<'a> {
        self.matrix.chunks_exact(self.dimension().max(1)).map(|row| row.iter().map(|&weight| weight.cast_signed()))
    }
}

impl<'a> Model<'a> {
    /// The products in the model's file, if it has any.
    pub fn products(&self) -> Option<Products<'a>> {
        self.read_products().ok().flatten()
    }

    /// [`Model::products`], or why the section holds none.
    pub(crate) fn read_products(&self) -> Result<Option<Products<'a>>, ProductsError> {
        let section = self.ancillary(KIND_PRODUCTS).map(|entry| self.section_bytes(entry.index as usize));
        section.map(|section| Products::read(section, self.embedding_dimension())).transpose()
    }
}

fn within(field: &'static str, found: u64, least: u64, most: u64) -> Result<(), ProductsError> {
    if (least..=most).contains(&found) { Ok(()) } else { Err(ProductsError { field, found, least, most }) }
}
