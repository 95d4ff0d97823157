//! Turns a float encoder (`.safetensors`) into one model file (`.nadir`), and shows what was lost.
//!
//! | module | what |
//! | --- | --- |
//! | [`float`] | to f32 and f16 |
//! | [`int8`] | to int8, with calibration |
//! | [`flight`], [`keys`] | what a file for flight has besides: block CRCs, self-test, checksum columns, parity, signature |
//! | [`soundness`] | whether a file is sound, and where it is not |
//! | [`writer`] | sections and header to a file, for every precision |
//! | [`mod@embed`], [`batch`] | the runtime over many tiles, on several threads |
//! | `onnx` | ONNX encoders in, and the graph run by tract; `candle`, `verify`: the float encoder in f32, and where the engines part (feature `onnx`) |
//! | [`options`] | kernels by name, passes, budgets |
//! | [`plan`], [`picture`] | what lies where in the arena, and what less memory costs |
//! | [`bound`], [`profile`] | what each step costs at most, and what it took |
//! | [`conformance`] | hashes of every map, against which kernels are held |
//! | [`integers`] | the int8 network by the letter of its normative text, where watchers may look at every map |
//! | [`mixed`] | which layers of an int8 model are raised, to meet a bound |
//! | [`maps`] | what a model computes at each place, in real units |
//! | [`mod@reference`] | the encoder in float64, where observers may look at every map |
//! | [`delta`] | from one model file to another by a small file |
//! | [`inspect`] | what a model file holds |
//! | [`report`], [`diff`] | what was lost, layer by layer and in the end; where two files differ |
//! | [`products`] | smaller forms of embeddings: fitted, measured, stored, decoded |
//! | [`compare`] | cosine and signal-to-noise ratio of two sets of embeddings |
//! | [`testing`] | encoders and tiles from a seed |

pub mod batch;
pub mod bound;
#[cfg(feature = "onnx")]
pub mod candle;
pub mod compare;
pub mod conformance;
pub mod delta;
pub mod diff;
pub mod embed;
pub mod flight;
pub mod float;
pub mod inspect;
pub mod int8;
pub mod integers;
pub mod keys;
pub mod maps;
pub mod mixed;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod options;
pub mod picture;
pub mod plan;
pub mod products;
pub mod profile;
pub mod reference;
pub mod report;
pub mod soundness;
pub mod testing;
#[cfg(feature = "onnx")]
pub mod verify;
pub mod writer;
