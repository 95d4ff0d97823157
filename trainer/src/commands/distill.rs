//! `trainer distill`.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;
use nadir_formats::{Encoder as EncoderFile, ModelCard};
use serde_json::json;

use super::{
    End, ScheduleArgs, SizeArgs, TilesArgs, already_finished, device, end, fit_tiles, not_negative, provenance,
    read_model, write_encoder,
};
use crate::data::{Sampler, Stream, fingerprint, generator};
use crate::distill::{Distillation, Weights, teacher_embeddings};
use crate::encoder::Encoder;
use crate::run::{fit_norm, stop_on_signals, train};

/// Distil a teacher into a smaller student
///
/// The student learns to give the teacher's embeddings: through a linear projection that is used only while training
/// (feature loss), and in the similarities between tiles (relation loss). The teacher's embeddings are computed once. It
/// takes the teacher's bands, normalisation, tile and patch size, and ends with an embedding space of its own.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  trainer distill --teacher zepto.safetensors --tiles tiles.npy --size yocto \
    --epochs 20 --flips --out runs/yocto")]
pub struct Distill {
    /// The teacher
    #[arg(long, value_name = "MODEL.safetensors")]
    teacher: PathBuf,

    #[command(flatten)]
    tiles: TilesArgs,

    /// Names of the tiles' bands, in their order [default: the teacher's]
    #[arg(long, value_name = "NAMES")]
    bands: Option<String>,

    #[command(flatten)]
    size: SizeArgs,

    /// A student to continue from, in place of a new one
    #[arg(long, value_name = "STUDENT.safetensors", conflicts_with_all = ["size", "dims", "depths"])]
    init: Option<PathBuf>,

    /// Weight of the feature loss
    #[arg(long, default_value_t = 1.0, value_name = "WEIGHT", value_parser = not_negative)]
    feature_weight: f64,

    /// Weight of the relation loss
    #[arg(long, default_value_t = 5.0, value_name = "WEIGHT", value_parser = not_negative)]
    relation_weight: f64,

    /// Symmetries (1 to 8) of a tile over which the teacher's embedding is averaged
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    teacher_views: u8,

    #[command(flatten)]
    pub(super) schedule: ScheduleArgs,
}

impl Distill {
    pub(super) fn run(self) -> Result<End> {
        ensure!(self.feature_weight + self.relation_weight > 0.0, "--feature-weight and --relation-weight are both 0");
        let (teacher_card, teacher) = read_model(&self.teacher)?;
        let (all, rows) = self.tiles.read()?;
        let all = fit_tiles(all, &self.tiles.tiles, self.bands.as_deref(), &teacher_card)?;
        let tiles = if rows.len() == all.len() { all } else { all.pick(&rows) };
        ensure!(tiles.len() > 1, "{}: a distillation needs more than one tile", self.tiles.tiles.display());

        let (student, size) = self.student(&teacher_card)?;
        let pixels = fingerprint(&tiles);
        let name = self.schedule.name.clone().unwrap_or_else(|| format!("{size}-{}", teacher_card.bands.len()));
        let card = ModelCard {
            name,
            architecture: *student.architecture(),
            bands: teacher_card.bands.clone(),
            embedding_space: "unnamed".into(),
            provenance: provenance(self.tiles.described(tiles.len(), &pixels), self.recipe(&teacher_card)),
        };
        if let Err(reason) = card.validate() {
            bail!("{reason}");
        }
        let settings = self.settings(&card, &teacher_card, &pixels);
        let run = self.schedule.open(&settings)?;
        if already_finished(&run) {
            return Ok(End::Done);
        }
        stop_on_signals()?;

        let batch = self.schedule.batch as usize;
        let targets = teacher_embeddings(&teacher, &tiles, &card.bands, self.teacher_views)?;
        let weights = Weights { feature: self.feature_weight, relation: self.relation_weight };
        let seed = self.schedule.seed;
        let distillation = Distillation::new(&student, &tiles, &card.bands, targets, weights, seed)?;
        if self.init.is_some() && !run.checkpoint_path().exists() {
            distillation.fit_projection()?;
        }
        let mut sampler = Sampler::new(tiles.len(), batch, seed, self.schedule.flips);
        let outcome = train(&run, &self.schedule.schedule(), &mut sampler, &distillation)?;
        end(&run, outcome, || {
            fit_norm(&student, &tiles, &card.bands)?;
            write_encoder(&run, &student, card.clone())
        })
    }

    /// The student at its start, and its size in words.
    fn student(&self, teacher: &ModelCard) -> Result<(Encoder, String)> {
        let Some(path) = &self.init else {
            let tile_size = usize::from(teacher.architecture.tile_size);
            let mut architecture = self.size.architecture("yocto", tile_size, teacher.architecture.patch_size)?;
            architecture.stem_padding = teacher.architecture.stem_padding;
            let mut random = generator(self.schedule.seed, Stream::Weights, 0);
            let student = Encoder::init(&architecture, teacher.bands.len(), &mut random, &device()?)?;
            return Ok((student, self.size.name("yocto")));
        };
        let file = EncoderFile::read(path)?;
        let (own, needed) = (&file.card, teacher);
        let shown = path.display();
        ensure!(
            own.architecture.tile_size == needed.architecture.tile_size,
            "{shown}: takes tiles of {} pixels, the teacher of {}",
            own.architecture.tile_size,
            needed.architecture.tile_size
        );
        ensure!(
            own.bands == needed.bands,
            "{shown}: takes the bands {} with other names or normalisation than the teacher ({})",
            own.band_names().join(","),
            needed.band_names().join(",")
        );
        let student = Encoder::from_tensors(&own.architecture, own.bands.len(), &file.tensors, &device()?)?;
        Ok((student, own.name.clone()))
    }

    fn settings(&self, card: &ModelCard, teacher: &ModelCard, pixels: &str) -> serde_json::Value {
        let s = &self.schedule;
        json!({
            "command": "distill",
            "name": card.name,
            "architecture": card.architecture,
            "bands": card.band_names(),
            "data": card.provenance.data,
            "teacher": self.teacher,
            "teacher_space": teacher.embedding_space,
            "tiles": self.tiles.tiles,
            "pixels": pixels,
            "split": self.tiles.split,
            "use": self.tiles.codes(),
            "init": self.init,
            "feature_weight": self.feature_weight,
            "relation_weight": self.relation_weight,
            "teacher_views": self.teacher_views,
            "epochs": s.epochs,
            "batch": s.batch,
            "lr": s.lr,
            "warmup": s.warmup(),
            "weight_decay": s.weight_decay,
            "flips": s.flips,
            "seed": s.seed,
            "logs_per_epoch": s.logs_per_epoch,
        })
    }

    fn recipe(&self, teacher: &ModelCard) -> String {
        let init = if self.init.is_some() { " --init, from an earlier student" } else { "" };
        format!(
            "distill from {} (embedding space {}) {} --feature-weight {} --relation-weight {} --teacher-views {}{init}",
            teacher.name,
            teacher.embedding_space,
            self.schedule.recipe(),
            self.feature_weight,
            self.relation_weight,
            self.teacher_views
        )
    }
}
