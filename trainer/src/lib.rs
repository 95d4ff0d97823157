//! Pretrains ConvNeXt V2 encoders by MP-MAE, distils them, embeds tiles with them and probes the embeddings.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`params`] | named trainable tensors |
//! | [`encoder`] | the encoder: a tile in, an embedding out |
//! | [`mask`] | which patches of a tile are hidden |
//! | [`mpmae`] | the encoder with MP-MAE's decoder, heads and losses |
//! | [`contrast`] | a loss beside MP-MAE's: views of a tile are told from those of others |
//! | [`optim`] | AdamW and the learning rate |
//! | [`ops`] | fused operations with their gradients |
//! | [`parallel`] | several processes that train one model |
//! | [`data`], [`run`], [`chart`] | tiles and tables, the run folder, the loss curve |
//! | [`import`], [`export`] | checkpoints from elsewhere; ONNX and PyTorch files |
//! | [`finetune`] | encoders trained on with labels: heads, the UNet, MMEarth's recipes |
//! | [`distill`], [`probe`], [`commands`] | what the command line offers |

pub mod chart;
pub mod commands;
pub mod contrast;
pub mod data;
pub mod distill;
pub mod encoder;
pub mod export;
pub mod finetune;
pub mod import;
mod loss;
pub mod mask;
pub mod mpmae;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod params;
pub mod probe;
pub mod quantization;
pub mod run;
