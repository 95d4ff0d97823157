//! `trainer info`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use nadir::model::Architecture;
use nadir_formats::{BandCard, Encoder as EncoderFile};

use crate::run::{Checkpoint, Run, Span};

/// Describe a model or a run
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  trainer info --model zepto.safetensors\n  trainer info --run runs/zepto")]
pub struct Info {
    /// An encoder
    #[arg(long, value_name = "MODEL.safetensors", required_unless_present = "run", conflicts_with = "run")]
    model: Option<PathBuf>,

    /// A run folder
    #[arg(long, value_name = "RUN")]
    run: Option<PathBuf>,
}

impl Info {
    pub(super) fn run(self) -> Result<()> {
        if let Some(path) = &self.model {
            model(path)?;
        }
        if let Some(folder) = &self.run {
            run(folder)?;
        }
        Ok(())
    }
}

fn model(path: &Path) -> Result<()> {
    let file = EncoderFile::read(path)?;
    let (card, a) = (&file.card, &file.card.architecture);
    let bands = card.bands.len();
    println!("{}: {}", path.display(), card.name);
    println!("embedding        {} dimensions, space {}", a.embedding_dimension(), card.embedding_space);
    println!(
        "input            {bands} bands of {0} x {0} pixels, patches of {1}, {2}",
        a.tile_size,
        a.patch_size,
        match a.is_patchify() {
            true => format!("patchify stem of {0} x {0}", a.stem_stride()),
            false => format!("stem padding {:?}", a.stem_padding),
        }
    );
    println!("parameters       {}", thousands(a.parameters(bands)));
    println!("multiply-adds    {} a tile", thousands(a.macs(bands)));
    println!("epsilons         LayerNorm {:e}, Global Response Normalization {:e}", a.ln_eps, a.grn_eps);
    println!("\nstage  blocks  channels  grid     parameters");
    let of_stem = if a.is_patchify() { a.grid(0) } else { a.initial_grid() };
    println!("stem   -       {:<8}  {:<7}  {:>10}", a.dim(0), grid(of_stem), thousands(of_part(&file, None)));
    for stage in 0..nadir::model::STAGES {
        println!(
            "{stage}      {:<6}  {:<8}  {:<7}  {:>10}",
            a.depths[stage],
            a.dim(stage),
            grid(a.grids()[stage]),
            thousands(of_part(&file, Some(stage)))
        );
    }
    println!("norm   -       {:<8}  {:<7}  {:>10}", a.embedding_dimension(), grid(1), thousands(2 * embedding(a)));
    println!("\nband      mean       std        unit");
    for band in &card.bands {
        println!("{:<8}  {:<9.3}  {:<9.3}  {}{}", band.name, band.mean, band.std, band.unit, marks(band));
    }
    let p = &card.provenance;
    println!("\nmade by   {}\ndata      {}\nrecipe    {}\nlicence   {}", p.made_by, p.data, p.recipe, p.licence);
    Ok(())
}

fn embedding(a: &Architecture) -> u64 {
    a.embedding_dimension() as u64
}

/// Parameters of a stage with the downsampling before it, or of the stem.
fn of_part(file: &EncoderFile, stage: Option<usize>) -> u64 {
    let belongs = |name: &str| match stage {
        None => name.starts_with("initial_conv.") || name.starts_with("stem."),
        Some(stage) => {
            let before = stage.checked_sub(1).map(|b| format!("downsample_layers.{b}."));
            name.starts_with(&format!("stages.{stage}.")) || before.is_some_and(|b| name.starts_with(&b))
        }
    };
    file.tensors.iter().filter(|(name, _)| belongs(name)).map(|(_, t)| t.data.len() as u64).sum()
}

fn marks(band: &BandCard) -> String {
    let mark = |what: &str, v: Option<f32>| v.map_or(String::new(), |v| format!(", {what} {v}"));
    mark("no data", band.no_data) + &mark("saturated from", band.saturation)
}

fn grid(side: usize) -> String {
    format!("{side} x {side}")
}

/// Digits in groups of three.
pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let groups = digits.as_bytes()[first..].chunks(3).map(|c| String::from_utf8_lossy(c).into_owned());
    let head = (first > 0).then(|| digits[..first].to_owned());
    head.into_iter().chain(groups).collect::<Vec<_>>().join(" ")
}

fn run(folder: &Path) -> Result<()> {
    let run = Run::look(folder)?;
    let config = run.config_path();
    let text = std::fs::read_to_string(&config).with_context(|| config.display().to_string())?;
    let settings: serde_json::Value = serde_json::from_str(&text).with_context(|| config.display().to_string())?;
    let setting = |key: &str| settings.get(key).map_or("?".into(), |v| v.to_string().trim_matches('"').to_owned());
    println!("{}: {} of {}, {} epochs", folder.display(), setting("command"), setting("name"), setting("epochs"));
    println!("data             {}", setting("data"));
    let checkpoint = run.checkpoint_path();
    let state = if run.finished() {
        format!("finished: {}", run.encoder_path().display())
    } else if checkpoint.exists() {
        format!("not finished; the checkpoint holds {} steps", Checkpoint::read(&checkpoint)?.position.step)
    } else {
        "not finished; no checkpoint yet".to_owned()
    };
    println!("state            {state}");
    let metrics = run.metrics()?;
    if let Some(last) = metrics.last() {
        println!("last             epoch {:.2}, step {}, {:.0} tiles/s", last.epoch, last.step, last.tiles_per_second);
    }
    let epochs: Vec<_> = metrics.iter().filter(|m| m.kind == Span::Epoch).collect();
    if let (Some(first), Some(last)) = (epochs.first(), epochs.last()) {
        println!("\nloss                first epoch  last epoch");
        println!("{:<18}  {:>11.4}  {:>10.4}", "total", first.loss, last.loss);
        for (name, loss) in &last.tasks {
            println!("{name:<18}  {:>11.4}  {loss:>10.4}", first.tasks.get(name).copied().unwrap_or(f64::NAN));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_are_grouped() {
        let groups = [0, 12, 123, 1234, 1234567].map(super::thousands);
        assert_eq!(groups, ["0", "12", "123", "1 234", "1 234 567"]);
    }
}
