//! The one place where a benchmark chooses how the runtime executes a model.
//!
//! Every program here takes `--kernels NAME` and hands it to [`encoder`]: the names are those of the runtime.

use anyhow::{Context, Result};
use nadir::encoder::Encoder;
use nadir::kernels::int8::Int8Kernels;
use nadir::model::Model;

/// The integer kernel sets of this processor, slowest first. The float ones are called `scalar`, `avx2`, `avx512`, `neon`.
pub fn kernel_sets() -> Vec<&'static str> {
    Int8Kernels::available().map(|set| set.name).collect()
}

/// An encoder that runs with the kernels called `kernels`, or with those that the runtime chooses itself.
///
/// # Errors
/// If there are no such kernels here; the text lists those that there are.
pub fn encoder<'m>(model: &'m Model<'m>, kernels: Option<&str>) -> Result<Encoder<'m>> {
    let encoder = Encoder::new(model);
    let Some(name) = kernels else { return Ok(encoder) };
    let context = || format!("no kernels {name:?} on this processor; there are: {}", kernel_sets().join(", "));
    encoder.with_kernels(name).ok().with_context(context)
}

/// The kernel sets, one a line: what `--list-kernels` prints.
pub fn list() -> String {
    kernel_sets().iter().map(|name| format!("{name}\n")).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nadir_formats::AlignedBytes;

    use super::*;

    #[test]
    fn every_listed_set_runs_and_no_other() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/yocto-rgb-int8.nadir");
        let bytes = AlignedBytes::read(&path).unwrap();
        let model = Model::parse(&bytes).unwrap();
        assert!(encoder(&model, None).is_ok());
        for name in kernel_sets() {
            assert!(encoder(&model, Some(name)).is_ok(), "{name}");
        }
        let error = encoder(&model, Some("mmx")).unwrap_err().to_string();
        assert!(error.starts_with("no kernels \"mmx\" on this processor; there are: scalar"), "{error}");
    }
}
