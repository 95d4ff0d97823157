//! Turns a float encoder (`.safetensors`) into one model file (`.nadir`), and shows what was lost.
//!
//! | module | what |
//! | --- | --- |
//! | [`float`] | to f32 and f16 |
//! | [`int8`] | to int8, with calibration |
//! | [`writer`] | sections and header to a file, for every precision |
//! | [`mod@embed`] | the runtime over many tiles |
//! | [`mod@reference`] | the encoder in float64, where observers may look at every map |
//! | [`inspect`] | what a model file holds |
//! | [`compare`] | cosine and signal-to-noise ratio of two sets of embeddings |
//! | [`testing`] | encoders and tiles from a seed |

pub mod compare;
pub mod embed;
pub mod float;
pub mod inspect;
pub mod int8;
pub mod reference;
pub mod testing;
pub mod writer;
