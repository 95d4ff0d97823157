//! Float to f32 and f16 model files: the weights in the order in which the runtime's kernels read them
//! ([`nadir::model::float_layout`]).

use anyhow::{Result, ensure};
use half::f16;
use nadir::model::float_layout::{PANEL, expected_section, panel_elements};
use nadir::model::{Dtype, Precision, STAGES};
use nadir_formats::Encoder;

use crate::writer::{SectionData, header, write_model};

/// A whole `.nadir` file in f32, or with the convolutions' weights in f16.
///
/// # Errors
/// If `precision` is int8, or a weight is too large for f16 (beyond 65504).
pub fn convert(encoder: &Encoder, precision: Precision) -> Result<Vec<u8>> {
    ensure!(precision != Precision::Int8, "int8 models are made by nadir_quantize::int8");
    let architecture = &encoder.card.architecture;
    let mut sections = Sections { encoder, precision, sections: Vec::new() };
    if architecture.is_patchify() {
        sections.dense("stem.0")?;
    } else {
        sections.dense("initial_conv.0")?;
        sections.vectors("initial_conv.1", ["weight", "bias"]);
        sections.depthwise("stem.0")?;
    }
    sections.vectors("stem.1", ["weight", "bias"]);
    for stage in 0..STAGES {
        if stage > 0 {
            let name = format!("downsample_layers.{}", stage - 1);
            sections.vectors(&format!("{name}.0"), ["weight", "bias"]);
            sections.dense(&format!("{name}.1"))?;
        }
        for block in 0..architecture.depths[stage] {
            let name = format!("stages.{stage}.{block}");
            sections.depthwise(&format!("{name}.dwconv"))?;
            sections.vectors(&format!("{name}.norm"), ["weight", "bias"]);
            sections.dense(&format!("{name}.pwconv1"))?;
            sections.vectors(&format!("{name}.grn"), ["gamma", "beta"]);
            sections.dense(&format!("{name}.pwconv2"))?;
        }
    }
    sections.vectors("norm", ["weight", "bias"]);
    debug_assert!(
        expected_section(architecture, encoder.card.bands.len(), Dtype::F32, sections.sections.len()).is_none()
    );
    write_model(&header(&encoder.card, precision)?, &sections.sections)
}

struct Sections<'a> {
    encoder: &'a Encoder,
    precision: Precision,
    sections: Vec<SectionData>,
}

impl Sections<'_> {
    /// Weight `[outputs, inputs]` or `[outputs, inputs, rows, columns]`, with inputs put after rows and columns; then the bias.
    fn dense(&mut self, name: &str) -> Result<()> {
        let shape = &self.encoder.tensor(&format!("{name}.weight")).shape;
        let (inputs, taps) = (shape[1], shape[2..].iter().product::<usize>());
        // (tap, input) in the file, (input, tap) in the tensor.
        self.weight(name, inputs * taps, |i| i % inputs * taps + i / inputs)
    }

    /// Weight `[channels, 1, rows, columns]`; then the bias.
    fn depthwise(&mut self, name: &str) -> Result<()> {
        let taps = self.encoder.tensor(&format!("{name}.weight")).shape[1..].iter().product();
        self.weight(name, taps, |i| i)
    }

    fn weight(&mut self, name: &str, inputs: usize, place: impl Fn(usize) -> usize) -> Result<()> {
        let name_of_weight = format!("{name}.weight");
        let tensor = self.encoder.tensor(&name_of_weight);
        let outputs = tensor.shape[0];
        let mut panels = vec![0.0; panel_elements(outputs, inputs)];
        for output in 0..outputs {
            for input in 0..inputs {
                let at = (output / PANEL * inputs + input) * PANEL + output % PANEL;
                panels[at] = tensor.data[output * inputs + place(input)];
            }
        }
        self.sections.push(if self.precision == Precision::F16 {
            let halves = panels.iter().map(|&v| {
                let half = f16::from_f32(v);
                ensure!(half.is_finite(), "{name_of_weight} holds {v}, too large for f16 (limit 65504)");
                Ok(half.to_bits())
            });
            SectionData::F16(halves.collect::<Result<_>>()?)
        } else {
            SectionData::F32(panels)
        });
        self.vectors(name, ["bias"]);
        Ok(())
    }

    fn vectors<const N: usize>(&mut self, name: &str, parts: [&str; N]) {
        for part in parts {
            self.sections.push(SectionData::F32(self.encoder.tensor(&format!("{name}.{part}")).data.clone()));
        }
    }
}
