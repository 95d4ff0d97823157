//! How a model is run: kernels by name, passes by number, memory by budget.

use anyhow::{Context, Result, bail, ensure};
use nadir::encoder::Encoder;
use nadir::kernels::float::FloatKernels;
use nadir::kernels::int8::Int8Kernels;
use nadir::model::{Model, Precision, STAGES};
use nadir::plan::int8::{Passes, StagePasses};

/// Names of the kernels that this processor runs for a precision, slowest first.
pub fn kernel_names(precision: Precision) -> Vec<&'static str> {
    match precision {
        Precision::Int8 => Int8Kernels::available().map(|set| set.name).collect(),
        Precision::F32 | Precision::F16 => FloatKernels::available().map(|set| set.name).collect(),
    }
}

/// An encoder with the kernels of this name, or the fastest without one.
///
/// # Errors
/// If this processor has no such kernels for the model's precision; the message names those that it has.
pub fn with_kernels<'m>(model: &'m Model<'m>, name: Option<&str>) -> Result<Encoder<'m>> {
    let encoder = Encoder::new(model);
    let Some(name) = name else { return Ok(encoder) };
    encoder.with_kernels(name).ok().with_context(|| {
        let precision = model.precision();
        let names = kernel_names(precision).join(", ");
        format!("there are no kernels {name:?} for {} models on this processor, only: {names}", precision.name())
    })
}

/// Passes as people write them: a 1 or 2 for each stage, `2,2,1,1`.
///
/// # Errors
/// If it is not four of them.
pub fn parse_passes(text: &str) -> Result<StagePasses> {
    let passes: Vec<Passes> = text
        .split(',')
        .map(|word| match word.trim() {
            "1" => Ok(Passes::One),
            "2" => Ok(Passes::Two),
            other => bail!("passes are 1 or 2, not {other:?}"),
        })
        .collect::<Result<_>>()?;
    let found = passes.len();
    passes.try_into().ok().with_context(|| format!("{found} passes given for {STAGES} stages"))
}

/// The same, written.
pub fn passes_text(passes: StagePasses) -> String {
    passes.map(|passes| if passes == Passes::One { "1" } else { "2" }).join(",")
}

/// The encoder with passes, or with those that fit a budget of bytes.
///
/// # Errors
/// If nothing fits the budget (the message names the smallest arena), or passes are given for a float model.
pub fn configured<'m>(encoder: Encoder<'m>, passes: Option<&str>, budget: Option<usize>) -> Result<Encoder<'m>> {
    let encoder = match passes {
        None => encoder,
        Some(text) => {
            let int8 = encoder.model().precision() == Precision::Int8;
            let passes = parse_passes(text).context("--passes")?;
            ensure!(int8 || passes == [Passes::One; STAGES], "--passes: f32 and f16 models have one pass");
            encoder.with_passes(passes)
        }
    };
    Ok(match budget {
        Some(budget) => encoder.within(budget).context("--budget")?,
        None => encoder,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_read_and_written() {
        for text in ["1,1,1,1", "2,1,2,1", "2,2,2,2"] {
            assert_eq!(passes_text(parse_passes(text).unwrap()), text);
        }
        assert_eq!(parse_passes("1,2").unwrap_err().to_string(), "2 passes given for 4 stages");
        assert_eq!(parse_passes("1,2,3,1").unwrap_err().to_string(), "passes are 1 or 2, not \"3\"");
    }
}
