//! Turns a float encoder (`.safetensors`) into one model file (`.nadir`), and shows what was lost.
//!
//! | module | what |
//! | --- | --- |
//! | [`float`] | to f32 and f16 |
//! | [`int8`] | to int8, with calibration |
//! | [`writer`] | sections and header to a file, for every precision |
//! | [`mod@embed`], [`batch`] | the runtime over many tiles, on several threads |
//! | [`options`] | kernels by name, passes, budgets |
//! | [`plan`], [`picture`] | what lies where in the arena, and what less memory costs |
//! | [`bound`], [`profile`] | what each step costs at most, and what it took |
//! | [`conformance`] | hashes of every map, against which kernels are held |
//! | [`mod@reference`] | the encoder in float64, where observers may look at every map |
//! | [`inspect`] | what a model file holds |
//! | [`compare`] | cosine and signal-to-noise ratio of two sets of embeddings |
//! | [`testing`] | encoders and tiles from a seed |

pub mod batch;
pub mod bound;
pub mod compare;
pub mod conformance;
pub mod embed;
pub mod float;
pub mod inspect;
pub mod int8;
pub mod options;
pub mod picture;
pub mod plan;
pub mod profile;
pub mod reference;
pub mod testing;
pub mod writer;
