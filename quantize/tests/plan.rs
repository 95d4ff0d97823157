//! What the planner says against what a run does: sizes to the byte, steps, budgets, and many tiles on several threads.

use std::collections::BTreeMap;

use nadir::encoder::{ConfigureError, EmbedError, Encoder, Step};
use nadir::kernels::int8::Int8Kernels;
use nadir::model::{Architecture, Model, Place, STAGES, StemPadding};
use nadir::plan::int8::{Passes, StagePasses, int8_arena_bytes};
use nadir::plan::regions::{places, regions};
use nadir_formats::{AlignedBytes, Pixels, Tiles};
use nadir_quantize::batch::embed_all;
use nadir_quantize::plan::{place_plans, step_kinds, trade_offs};
use nadir_quantize::testing::{raise, random_int8_model, random_tiles};

const BANDS: [&str; 4] = ["B2", "B3", "B4", "B8A"];

/// Odd and even maps, each stem, strips of whole rows and of parts of rows, and a downsampling that cannot happen in place.
fn cases() -> Vec<(Architecture, usize)> {
    let yocto = Architecture::named("yocto", 64, 16).unwrap();
    let small = Architecture { depths: [1, 2, 1, 1], dims: [8, 16, 24, 32], ..yocto };
    let none = StemPadding::None;
    vec![
        (Architecture { tile_size: 21, patch_size: 8, ..small }, 1),
        (Architecture { tile_size: 70, patch_size: 8, ..small }, 3),
        (Architecture { tile_size: 37, patch_size: 16, stem_padding: none, ..small }, 4),
        (Architecture { tile_size: 75, patch_size: 32, stem_padding: none, ..small }, 2),
        (Architecture { tile_size: 32, dims: [8, 48, 8, 64], ..small }, 3),
        (Architecture { tile_size: 75, patch_size: 32, stem_padding: StemPadding::Patchify, ..small }, 3),
        (Architecture { tile_size: 37, patch_size: 16, stem_padding: StemPadding::Patchify, ..small }, 4),
        // The stem, whose rows are long and its channels few, rules this one.
        (Architecture { tile_size: 64, patch_size: 32, dims: [8; 4], ..small }, 4),
    ]
}

fn model((architecture, bands): (Architecture, usize)) -> AlignedBytes {
    AlignedBytes::copy_of(&random_int8_model("case", architecture, &BANDS[..bands], 7))
}

/// The same with every layer raised that can be.
fn raised((architecture, bands): (Architecture, usize)) -> AlignedBytes {
    let blocks: Vec<Place> = places(&architecture).filter(|place| matches!(place, Place::Block { .. })).collect();
    AlignedBytes::copy_of(&raise(&model((architecture, bands)), &blocks))
}

/// One u16 tile.
fn tile((architecture, bands): (Architecture, usize)) -> Vec<u16> {
    let Pixels::U8(bytes) = random_tiles(1, bands, architecture.tile_size.into(), 5).pixels else {
        unreachable!("tiles of bytes")
    };
    bytes.iter().map(|&v| 20 * u16::from(v)).collect()
}

fn all_passes() -> impl Iterator<Item = StagePasses> {
    (0..1 << STAGES).map(|choice| std::array::from_fn(|i| if choice >> i & 1 == 1 { Passes::Two } else { Passes::One }))
}

/// In two runs over different patterns a byte that was never written keeps both of them: the last that was written, rounded up to 16 bytes, is
/// the end of the plan, and no byte beyond.
#[test]
fn the_high_water_mark_is_the_plan() {
    for (case, file) in cases().into_iter().flat_map(|case| [(case, model(case)), (case, raised(case))]) {
        let tile = tile(case);
        let model = Model::parse(&file).unwrap();
        let mut embeddings = Vec::new();
        for set in Int8Kernels::available() {
            for passes in all_passes() {
                let encoder = Encoder::new(&model).with_kernels(set.name).unwrap().with_passes(passes);
                let planned = encoder.arena_bytes();
                let arenas = [0xa5, 0x5a].map(|pattern| {
                    let mut arena = AlignedBytes::zeroed(planned + 256);
                    arena.fill(pattern);
                    let mut embedding = vec![0.0; model.embedding_dimension()];
                    encoder.embed(nadir::Tile::U16(&tile), &mut arena, &mut embedding).unwrap();
                    embeddings.push(embedding);
                    arena
                });
                let untouched = |&i: &usize| arenas[0][i] == 0xa5 && arenas[1][i] == 0x5a;
                let end = (0..planned + 256).rev().find(|i| !untouched(i)).map_or(0, |last| last + 1);
                let what = format!("{case:?} {} {passes:?}", set.name);
                assert_eq!(end.next_multiple_of(nadir::encoder::ARENA_ALIGNMENT), planned, "{what}");
            }
        }
        assert!(
            embeddings.iter().all(|e| *e == embeddings[0]),
            "one embedding, whatever the kernels, passes and arena"
        );
        assert!(embeddings[0].iter().any(|&v| v != embeddings[0][0]));
    }
}

#[test]
fn a_byte_less_is_an_error_and_writes_nothing() {
    for case in cases() {
        let (file, tile) = (model(case), tile(case));
        let model = Model::parse(&file).unwrap();
        for passes in all_passes() {
            let encoder = Encoder::new(&model).with_passes(passes);
            let needed = encoder.arena_bytes();
            let mut arena = AlignedBytes::zeroed(needed - 1);
            let mut embedding = vec![-1.0; model.embedding_dimension()];
            let error = encoder.embed(nadir::Tile::U16(&tile), &mut arena, &mut embedding);
            assert_eq!(error, Err(EmbedError::ArenaTooSmall { found: needed - 1, needed }));
            assert!(arena.iter().all(|&b| b == 0) && embedding.iter().all(|&v| v == -1.0));
        }
    }
}

/// Raised layers need no memory and are computed twice.
#[test]
fn raised_layers_cost_multiply_adds_alone() {
    for case in cases() {
        let files = [model(case), raised(case)];
        let models = [&files[0], &files[1]].map(|file| Model::parse(file).unwrap());
        for passes in all_passes() {
            let [plain, raised] = [&models[0], &models[1]].map(|model| Encoder::new(model).with_passes(passes));
            assert_eq!(plain.arena_bytes(), raised.arena_bytes());
            for (before, after) in step_kinds(&plain).iter().zip(step_kinds(&raised)) {
                let Place::Block { stage, .. } = before.place else {
                    assert_eq!(*before, after);
                    continue;
                };
                let d = case.0.dim(stage.into()) as u64;
                let second = if before.pass == 1 { 4 * d * d * (case.0.grid(stage.into()) as u64).pow(2) } else { 0 };
                assert_eq!(after.total.macs, before.total.macs + second, "{case:?} {passes:?} {}", before.place);
            }
        }
    }
}

/// Places, numbers of steps, and regions are those of the plan.
#[test]
fn runs_do_the_steps_of_the_plan() {
    for case in cases() {
        let (file, tile) = (model(case), tile(case));
        let model = Model::parse(&file).unwrap();
        for passes in all_passes() {
            let encoder = Encoder::new(&model).with_passes(passes);
            let mut planned: BTreeMap<String, usize> = BTreeMap::new();
            for kind in step_kinds(&encoder) {
                *planned.entry(kind.place.to_string()).or_default() += kind.steps;
            }
            let mut arena = AlignedBytes::zeroed(encoder.arena_bytes());
            let mut embedding = vec![0.0; model.embedding_dimension()];
            let mut run = encoder.start(nadir::Tile::U16(&tile), &mut arena, &mut embedding).unwrap();
            let (mut found, mut order) = (BTreeMap::new(), Vec::new());
            loop {
                let place = run.place().unwrap();
                *found.entry(place.to_string()).or_default() += 1;
                if order.last() != Some(&place) {
                    order.push(place);
                }
                if run.step().unwrap() == Step::Done {
                    break;
                }
            }
            assert_eq!(found, planned, "{case:?} {passes:?}");
            assert!(places(model.architecture()).eq(order));
            let ends = place_plans(&encoder).iter().map(|plan| plan.end()).max();
            assert_eq!(ends, Some(encoder.arena_bytes()));
            for place in places(model.architecture()) {
                let regions: Vec<_> = regions(&case.0, case.1, model.precision(), passes, place).collect();
                for pair in regions.windows(2) {
                    assert!(pair[0].offset + pair[0].bytes <= pair[1].offset && pair[1].offset % 16 == 0);
                }
            }
        }
    }
}

#[test]
fn budgets_choose_the_cheapest_passes_that_fit() {
    for case in cases() {
        let file = model(case);
        let model = Model::parse(&file).unwrap();
        let front = trade_offs(&model);
        assert_eq!((front[0].passes, front[0].extra_macs), ([Passes::One; STAGES], 0));
        for pair in front.windows(2) {
            assert!(pair[0].arena_bytes > pair[1].arena_bytes && pair[0].extra_macs <= pair[1].extra_macs);
        }
        for (i, choice) in front.iter().enumerate() {
            let fits = Encoder::new(&model).within(choice.arena_bytes).unwrap();
            assert_eq!(fits.arena_bytes(), choice.arena_bytes, "{case:?}");
            match (Encoder::new(&model).within(choice.arena_bytes - 1), front.get(i + 1)) {
                (Ok(encoder), Some(next)) => assert_eq!(encoder.arena_bytes(), next.arena_bytes),
                (Err(error), None) => {
                    let (budget, needed) = (choice.arena_bytes - 1, choice.arena_bytes);
                    assert_eq!(error, ConfigureError::Budget { budget, needed });
                }
                other => panic!("{case:?}: {other:?}"),
            }
        }
        // No choice of passes is better than the front in one and not worse in the other.
        for passes in all_passes() {
            let bytes = int8_arena_bytes(&case.0, case.1, passes);
            assert!(front.iter().any(|choice| choice.arena_bytes <= bytes), "{passes:?}");
        }
    }
}

/// Threads share an encoder; the result does not depend on how many there are.
#[test]
fn threads_give_what_one_gives() {
    let architecture = Architecture { dims: [8, 16, 24, 32], ..Architecture::named("yocto", 32, 16).unwrap() };
    let file = model((architecture, 3));
    let model = Model::parse(&file).unwrap();
    let encoder = Encoder::new(&model);
    let Tiles { shape, pixels: Pixels::U8(bytes) } = random_tiles(37, 3, 32, 8) else { unreachable!("tiles of bytes") };
    let tiles = Tiles { shape, pixels: Pixels::U16(bytes.iter().map(|&v| 20 * u16::from(v)).collect()) };
    let count = std::sync::atomic::AtomicUsize::new(0);
    let done = || _ = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let one = embed_all(&encoder, &tiles, 1, done).unwrap();
    assert_eq!((one.rows, count.load(std::sync::atomic::Ordering::Relaxed)), (37, 37));
    let mut arena = AlignedBytes::zeroed(encoder.arena_bytes());
    for row in 0..37 {
        let mut embedding = vec![0.0; model.embedding_dimension()];
        encoder.embed(tiles.tile(row), &mut arena, &mut embedding).unwrap();
        assert_eq!(embedding, one.row(row));
    }
    for threads in [0, 2, 3, 8, 100] {
        assert_eq!(embed_all(&encoder, &tiles, threads, || ()).unwrap(), one, "{threads} threads");
    }
    let none = Tiles { shape: [0, 3, 32, 32], pixels: Pixels::U16(Vec::new()) };
    assert_eq!(embed_all(&encoder, &none, 4, || ()).unwrap().rows, 0);
    let other = Tiles { shape: [1, 3, 33, 32], pixels: Pixels::U16(vec![0; 3 * 33 * 32]) };
    let error = embed_all(&encoder, &other, 4, || ()).unwrap_err().to_string();
    assert_eq!(error, "tiles have shape [1, 3, 33, 32], the model takes [tiles, 3, 32, 32]");
}
