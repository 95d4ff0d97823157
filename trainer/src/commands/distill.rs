//! `trainer distill`.

mod student;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nadir_formats::{Matrix, ModelCard, Tiles};
use serde_json::json;

use self::student::StudentArgs;
use super::device::DeviceArgs;
use super::table::TableArgs;
use super::{
    End, ScheduleArgs, TilesArgs, already_finished, end, extend, fit_tiles, not_negative, provenance, read_model,
    write_encoder, write_encoder_in,
};
use crate::data::{RandomFeatures, Sampler, Stream, fingerprint, fingerprint_of_file, generator, random_features};
use crate::distill::{Distillation, Fit, Options, Pretext, Sight, Teacher, View, Weights, teacher_embeddings};
use crate::encoder::Encoder;
use crate::params::Init;
use crate::quantization::Quantization;
use crate::run::{Run, fit_norm, stop_on_signals, train};

/// Distil a teacher into a smaller student
///
/// The student learns to give the teacher's embeddings: through a linear projection that is used only while training
/// (feature loss), and in the similarities between tiles (relation loss). The teacher's embeddings are computed once and kept in the
/// run folder. The student takes the teacher's bands, normalisation, tile and patch size unless told otherwise, and ends with an
/// embedding space of its own unless --keep-space.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  trainer distill --teacher zepto.safetensors --tiles tiles.npy --student yocto --epochs 20 \\\n    \
    --flips --out runs/yocto\n  trainer distill --teacher atto.safetensors --tiles tiles.npy --student camera.toml --epochs 20 \\\n    \
    --student-bands B2,B3,B4,B8 --band-dropout 0.1 --matryoshka 32,64,128 --out runs/camera\n  trainer distill \
    --teacher yocto.safetensors --init yocto.safetensors --keep-space --relation-weight 0 --tiles tiles.npy \\\n    --quantize-aware \
    --epochs 6 --batch 16 --lr 2e-5 --weight-decay 0 --out runs/yocto-int8"
)]
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
    student: StudentArgs,

    /// How the student's weights are drawn
    #[arg(long, value_name = "HOW", default_value = "fan-in", conflicts_with = "init")]
    init_std: Init,

    /// Weight of the feature loss
    #[arg(long, default_value_t = 1.0, value_name = "WEIGHT", value_parser = not_negative)]
    feature_weight: f64,

    /// Weight of the relation loss
    #[arg(long, default_value_t = 5.0, value_name = "WEIGHT", value_parser = not_negative)]
    relation_weight: f64,

    /// Lengths at which the embedding can be cut after training: both losses are taken on each of these prefixes too
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', conflicts_with = "keep_space")]
    matryoshka: Vec<usize>,

    /// Stay in the teacher's embedding space: the student's embeddings may be compared with the teacher's, and its file carries the same
    /// space. Takes a student of the teacher's embedding dimension
    #[arg(long)]
    keep_space: bool,

    /// Probability that a band of a tile is hidden from the student while training (one at least stays)
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    band_dropout: f64,

    /// Round the student's weights and activations to eight bits while it learns, as `quantize convert --precision int8` will afterwards: for a
    /// trained student (--init) at a small --lr, for instance 2e-5. On the CPU alone
    #[arg(long)]
    quantize_aware: bool,

    /// Symmetries (1 to 8) of a tile over which the teacher's embedding is averaged
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    teacher_views: u8,

    /// Embeddings of all tiles by the teacher, as `trainer embed` writes them, in place of computing them
    #[arg(long, value_name = "E.npy", conflicts_with = "teacher_views")]
    teacher_embeddings: Option<PathBuf>,

    /// Run the teacher at every step, on the tile turned as the student sees it: slower, and worth it where orientation should tell
    #[arg(long, conflicts_with_all = ["teacher_views", "teacher_embeddings"])]
    live_teacher: bool,

    #[command(flatten)]
    table: TableArgs,

    /// Give so many random features beside the teacher's embedding (principal components, 1 to 96): how strongly a tile answers to patches
    /// of other tiles. They count as much as the teacher. 0 for none
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "keep_space")]
    random_features: usize,

    /// Weight of the mean loss of the table's columns
    #[arg(long, default_value_t = 1.0, value_name = "WEIGHT", value_parser = not_negative, requires = "table")]
    pretext_weight: f64,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    pub(super) schedule: ScheduleArgs,
}

fn share(text: &str) -> Result<f64, String> {
    not_negative(text).and_then(|v| if v < 1.0 { Ok(v) } else { Err("must be below 1".into()) })
}

impl Distill {
    pub(super) fn run(self) -> Result<End> {
        ensure!(self.feature_weight + self.relation_weight > 0.0, "--feature-weight and --relation-weight are both 0");
        let device = self.device.open(None)?;
        ensure!(
            !self.quantize_aware || self.student.init.is_some(),
            "--quantize-aware goes on with a trained student: give --init"
        );
        ensure!(!self.quantize_aware || device.is_cpu(), "--quantize-aware trains on the CPU: give --device cpu");
        let (teacher_card, teacher) = read_model(&self.teacher, &device)?;
        let (all, rows) = self.tiles.read()?;
        let count = all.len();
        let all = fit_tiles(all, &self.tiles.tiles, self.bands.as_deref(), &teacher_card)?;
        let tiles = if rows.len() == count { all } else { all.pick(&rows) };
        ensure!(tiles.len() > 1, "{}: a distillation needs more than one tile", self.tiles.tiles.display());

        let plan = self.student.plan(&teacher_card)?;
        let mut random = generator(self.schedule.seed, Stream::Weights, 0);
        let student = match &plan.tensors {
            Some(tensors) => Encoder::from_tensors(&plan.architecture, plan.bands.len(), tensors, &device)?,
            None => Encoder::init_as(self.init_std, &plan.architecture, plan.bands.len(), &mut random, &device)?,
        };
        let side = usize::from(plan.architecture.tile_size);
        let view = View::new(&tiles, &teacher_card.bands, &plan.bands, side, plan.fit)
            .with_context(|| self.tiles.tiles.display().to_string())?;
        let pixels = fingerprint(&tiles);
        let name = self.schedule.name.clone().unwrap_or_else(|| plan.name.clone());
        let card = ModelCard {
            name,
            architecture: plan.architecture,
            bands: plan.bands.clone(),
            embedding_space: "unnamed".into(),
            provenance: provenance(
                self.tiles.described(tiles.len(), &pixels),
                self.recipe(
                    &teacher_card,
                    plan.fit,
                    plan.architecture.tile_size != teacher_card.architecture.tile_size,
                ),
            ),
        };
        if let Err(reason) = card.validate() {
            bail!("{reason}");
        }
        let pretext = Pretext::new(self.table.targets(count, &rows)?, self.pretext_weight)?;
        if self.random_features > 0 {
            let side = tiles.shape[2];
            RandomFeatures::check(tiles.len(), side, side, self.random_features).context("--random-features")?;
        }
        let settings = self.settings(&card, &teacher_card, &pixels, plan.fit)?;
        let run = self.schedule.open(&settings)?;
        if already_finished(&run) {
            return Ok(End::Done);
        }
        stop_on_signals()?;

        let plain = self.plain(&run, &teacher, &teacher_card, &tiles, (count, &rows))?;
        let source = match self.live_teacher {
            true => Teacher::Live { encoder: teacher.frozen(), plain },
            false => Teacher::Cached(plain),
        };
        let seed = self.schedule.seed;
        let options = Options {
            weights: Weights { feature: self.feature_weight, relation: self.relation_weight },
            prefixes: self.matryoshka.clone(),
            keep_space: self.keep_space,
            band_dropout: self.band_dropout,
            seed,
        };
        let beside = match self.random_features {
            0 => None,
            width => {
                let all: Vec<usize> = (0..tiles.len()).collect();
                Some(random_features(&tiles, &teacher_card.bands, &all, width, seed)?)
            }
        };
        let sight = Sight { tiles: &tiles, bands: &teacher_card.bands, view: &view };
        let mut distillation = Distillation::new(&student, sight, source, beside, options, pretext)?;
        if self.quantize_aware {
            // Before a checkpoint is read: a resumed run gets the scales with which it began.
            distillation = distillation.quantized(Quantization::calibrate(&student, view.tiles(), view.bands())?);
        }
        if self.student.init.is_some() && !self.keep_space && !run.checkpoint_path().exists() {
            distillation.fit_projection()?;
        }
        let mut sampler = Sampler::new(tiles.len(), self.schedule.batch as usize, seed, self.schedule.flips);
        let outcome = train(&run, &self.schedule.schedule(), &mut sampler, &distillation)?;
        end(&run, outcome, || {
            if self.keep_space {
                return write_encoder_in(&run, &student, card, Some(&teacher_card.embedding_space));
            }
            fit_norm(&student, view.tiles(), view.bands())?;
            write_encoder(&run, &student, card)
        })
    }

    /// The teacher's embeddings of the tiles in use: given, kept in the run folder, or computed and then kept there.
    fn plain(
        &self,
        run: &Run,
        teacher: &Encoder,
        card: &ModelCard,
        tiles: &Tiles,
        (all, rows): (usize, &[usize]),
    ) -> Result<Matrix> {
        let columns = card.architecture.embedding_dimension();
        if let Some(path) = &self.teacher_embeddings {
            let given = Matrix::read(path)?;
            let shown = path.display();
            ensure!(
                given.columns == columns && given.rows == all,
                "{shown}: has {} embeddings of {} dimensions; there are {all} tiles, and {} gives {columns} dimensions",
                given.rows,
                given.columns,
                card.name
            );
            let data: Vec<f32> = rows.iter().flat_map(|row| given.row(*row)).copied().collect();
            if let Some(at) = data.iter().position(|v| !v.is_finite()) {
                bail!("{shown}: the embedding of tile {} is not finite", rows[at / columns]);
            }
            return Ok(Matrix { rows: rows.len(), columns, data });
        }
        let path = run.teacher_path();
        if let Some(kept) = path.exists().then(|| Matrix::read(&path)).transpose()? {
            let shape = (kept.rows, kept.columns);
            ensure!(shape == (rows.len(), columns), "{}: is not this run's: delete it and go on", path.display());
            return Ok(kept);
        }
        let plain = teacher_embeddings(teacher, tiles, &card.bands, self.teacher_views)?;
        plain.write(&path)?;
        Ok(plain)
    }

    fn settings(&self, card: &ModelCard, teacher: &ModelCard, pixels: &str, fit: Fit) -> Result<serde_json::Value> {
        let s = &self.schedule;
        let mut settings = json!({
            "command": "distill",
            "name": card.name,
            "architecture": card.architecture,
            "bands": card.band_names(),
            "data": card.provenance.data,
            "teacher": self.teacher,
            "teacher_space": teacher.embedding_space,
            "teacher_views": self.teacher_views,
            "teacher_embeddings": self.teacher_embeddings,
            "live_teacher": self.live_teacher,
            "tiles": self.tiles.tiles,
            "pixels": pixels,
            "split": self.tiles.split,
            "use": self.tiles.codes(),
            "init": self.student.init,
            "init_contents": self.student.init.as_deref().map(fingerprint_of_file).transpose()?,
            "init_std": format!("{:?}", self.init_std),
            "fit": format!("{fit:?}"),
            "feature_weight": self.feature_weight,
            "relation_weight": self.relation_weight,
            "matryoshka": self.matryoshka,
            "keep_space": self.keep_space,
            "band_dropout": self.band_dropout,
            "quantize_aware": self.quantize_aware,
            "epochs": s.epochs,
            "batch": s.batch,
            "lr": s.lr,
            "warmup": s.warmup(),
            "weight_decay": s.weight_decay,
            "flips": s.flips,
            "seed": s.seed,
            "logs_per_epoch": s.logs_per_epoch,
            "random_features": self.random_features,
            "pretext_weight": self.pretext_weight,
        });
        extend(&mut settings, &self.table.settings()?);
        Ok(settings)
    }

    /// The command line's essentials.
    fn recipe(&self, teacher: &ModelCard, fit: Fit, resized: bool) -> String {
        let mut recipe = format!(
            "distill from {} (embedding space {}) {} --feature-weight {} --relation-weight {}",
            teacher.name,
            teacher.embedding_space,
            self.schedule.recipe(),
            self.feature_weight,
            self.relation_weight,
        );
        let mut option = |on: bool, text: String| {
            if on {
                recipe.push(' ');
                recipe.push_str(&text);
            }
        };
        let lengths: Vec<_> = self.matryoshka.iter().map(usize::to_string).collect();
        option(self.teacher_views > 1, format!("--teacher-views {}", self.teacher_views));
        option(self.live_teacher, "--live-teacher".into());
        option(!lengths.is_empty(), format!("--matryoshka {}", lengths.join(",")));
        option(self.keep_space, "--keep-space".into());
        option(self.band_dropout > 0.0, format!("--band-dropout {}", self.band_dropout));
        option(
            self.student.init.is_none() && self.init_std != Init::FanIn,
            format!("--init-std {}", self.init_std.name()),
        );
        option(self.quantize_aware, "--quantize-aware".into());
        option(self.random_features > 0, format!("--random-features {}", self.random_features));
        let table = self.table.recipe();
        option(!table.is_empty(), table.trim_start().to_owned());
        option(self.pretext_weight != 1.0, format!("--pretext-weight {}", self.pretext_weight));
        option(resized, format!("--fit {}", format!("{fit:?}").to_lowercase()));
        option(self.teacher_embeddings.is_some(), "--teacher-embeddings".into());
        option(self.student.init.is_some(), "--init, from an earlier student".into());
        recipe
    }
}
