//! Products of an embedding: `crate::triage::products` for C.

use super::encoder::{Handle, model, span};
use super::memory::{Span, array, array_mut, put};
use super::{ErrorDetail, Failure, Status, finish};
use crate::triage::codes::CodeError;
use crate::triage::products::Product;

/// Product: the first `numbers` of the embedding about its centre, an int8 each with a scale of its own.
pub const NADIR_PRODUCT_INT8: u32 = 0;
/// Product: the signs of the embedding about its centre, a bit each; `numbers` is the embedding's dimension.
pub const NADIR_PRODUCT_BINARY: u32 = 1;
/// Product: the first `numbers` principal components, an int8 each with a scale of its own.
pub const NADIR_PRODUCT_PCA: u32 = 2;

/// How many numbers a model's products have.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductsInfo {
    /// Numbers of an embedding: the most of NADIR_PRODUCT_INT8.
    pub dimension: u32,
    /// Principal components in the file, the most of NADIR_PRODUCT_PCA; may be 0.
    pub components: u32,
    /// Bytes of NADIR_PRODUCT_BINARY. The others have as many bytes as numbers.
    pub binary_bytes: u32,
}

/// Tells which products the model's file holds; NADIR_STATUS_NO_PRODUCTS if none. `error`: may be null.
///
/// # Safety
/// `encoder` comes from nadir_open; `info` and `error`, if not null, point to writable places.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_products(
    encoder: *const Handle,
    info: *mut ProductsInfo,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the handle is checked; the rest is the caller's promise.
    unsafe {
        let told = || {
            let products = model(encoder)?.products().ok_or(NONE)?;
            let dimension = products.dimension();
            let value = ProductsInfo {
                dimension: dimension as u32,
                components: products.components() as u32,
                binary_bytes: Product::Binary.bytes(dimension) as u32,
            };
            put(info, value, "info").map(|()| Status::Ok)
        };
        finish(error, told())
    }
}

/// Writes a product of an embedding. Equal embeddings give equal bytes on every processor. Does not disturb a run.
///
/// `product`: NADIR_PRODUCT_INT8, _BINARY or _PCA; `numbers`: how many. `embedding`: `dimension` values, the model's. `code`: exactly the
/// product's bytes. `error`: may be null.
///
/// # Safety
/// `encoder` comes from nadir_open; the other pointers, if not null, point to so many readable or writable values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_encode_product(
    encoder: *const Handle,
    product: u32,
    numbers: usize,
    embedding: *const f32,
    dimension: usize,
    code: *mut u8,
    code_bytes: usize,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the handle is checked; the code overlaps neither embedding, arena nor model; the rest is the caller's promise.
    unsafe {
        let encoded = || {
            let products = model(encoder)?.products().ok_or(NONE)?;
            let product = match product {
                NADIR_PRODUCT_INT8 => Product::Int8(numbers),
                NADIR_PRODUCT_BINARY if numbers == products.dimension() => Product::Binary,
                NADIR_PRODUCT_BINARY => {
                    let expected = products.dimension() as u64;
                    return Err(Failure::new(Status::Length, "numbers", numbers as u64, expected));
                }
                NADIR_PRODUCT_PCA => Product::Pca(numbers),
                other => return Err(Failure::new(Status::UnknownValue, "product", other.into(), 2)),
            };
            let (out, file) = (Span::of(code, code_bytes, "code")?, model(encoder)?.bytes());
            out.apart_from(&Span::of(embedding, dimension, "embedding")?)?;
            out.apart_from(&span(encoder)?)?;
            out.apart_from(&Span::of(file.as_ptr(), file.len(), "model")?)?;
            let embedding = array(embedding, dimension, "embedding")?;
            products.encode(product, embedding, array_mut(code, code_bytes, "code")?)?;
            Ok(Status::Ok)
        };
        finish(error, encoded())
    }
}

const NONE: Failure = Failure::new(Status::NoProducts, "model", 0, 0);

impl From<CodeError> for Failure {
    fn from(error: CodeError) -> Self {
        match error {
            CodeError::Length { what, found, expected } => {
                Self::new(Status::Length, what, found as u64, expected as u64)
            }
            CodeError::Numbers { found, most } => Self::new(Status::Length, "numbers", found as u64, most as u64),
            CodeError::NotFinite { index } => Self::new(Status::NotFinite, "embedding", index as u64, 0),
            CodeError::Scale => Self::new(Status::UnknownValue, "scale", 0, 0),
        }
    }
}
