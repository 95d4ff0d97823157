//! Fine-tuning and probes against PyTorch, scikit-learn and numpy (`scripts/make_downstream.py`).

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use nadir_formats::{Matrix, Tensor as Array};
use nadir_trainer::data::Labels;
use nadir_trainer::encoder::Encoder;
use nadir_trainer::finetune::net::{ENCODER, Net, Trained};
use nadir_trainer::finetune::path::Dropped;
use nadir_trainer::probe::{Confusion, LogisticEach, metrics, nearest_neighbours, neighbour_shares};
use rand::SeedableRng;
use rand::rngs::StdRng;
use safetensors::SafeTensors;
use serde_json::Value;

use common::relative;

struct Vectors {
    tensors: BTreeMap<String, Array>,
    about: Value,
}

fn vectors() -> Vectors {
    let bytes =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/downstream/vectors.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let about = header.metadata().as_ref().unwrap()["about"].parse().unwrap();
    let array = |view: safetensors::tensor::TensorView| Array {
        shape: view.shape().to_vec(),
        data: view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
    };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    Vectors { tensors: file.iter().map(|(name, view)| (name.to_owned(), array(view))).collect(), about }
}

impl Vectors {
    fn under(&self, prefix: &str) -> BTreeMap<String, Array> {
        let strip = |(k, v): (&String, &Array)| k.strip_prefix(prefix).map(|k| (k.to_owned(), v.clone()));
        self.tensors.iter().filter_map(strip).collect()
    }

    fn number(&self, name: &str) -> f64 {
        self.about[name].as_f64().unwrap()
    }

    fn values(&self, name: &str) -> &[f32] {
        &self.tensors[name].data
    }

    fn tensor(&self, name: &str) -> Tensor {
        let array = &self.tensors[name];
        Tensor::from_slice(&array.data, array.shape.as_slice(), &Device::Cpu).unwrap()
    }

    fn indices(&self, name: &str) -> Vec<usize> {
        self.values(name).iter().map(|v| *v as usize).collect()
    }

    fn encoder(&self) -> Encoder {
        let architecture = serde_json::from_value(self.about["architecture"].clone()).unwrap();
        Encoder::from_tensors(&architecture, 3, &self.under("encoder."), &Device::Cpu).unwrap()
    }

    /// A net on the encoder whose head has the tensors under `head`.
    fn net(&self, labels: &Labels, head: &str) -> Net {
        let mut random = StdRng::seed_from_u64(0);
        let net = Net::new(&self.encoder(), labels, &[0, 1], 2, 32, Trained::All, &mut random).unwrap();
        for (name, array) in self.under(head) {
            net.params().set(&name, &array.data).unwrap();
        }
        net
    }

    fn dropped(&self) -> Dropped {
        Dropped::from_factors(self.values("factors").chunks(2).map(<[f32]>::to_vec).collect())
    }

    /// Output, loss and all gradients of a net.
    fn check(&self, net: &Net, labels: &Labels, smoothing: f64, case: &str) {
        let output = net.forward(&self.tensor("x"), Some(&self.dropped()), false).unwrap();
        let error =
            relative(&output.flatten_all().unwrap().to_vec1::<f32>().unwrap(), self.values(&format!("{case}.output")));
        assert!(error < 1e-5, "{case}: output differs by {error}");
        let loss = net.loss(&output, labels, 2, &[(0, 0), (1, 0)], smoothing).unwrap().unwrap();
        let (is, should) = (f64::from(loss.to_scalar::<f32>().unwrap()), self.number(&format!("{case}.loss")));
        assert!((is - should).abs() < 1e-5 * should.abs(), "{case}: loss {is}, not {should}");
        let gradients = loss.backward().unwrap();
        let expected = self.under(&format!("{case}.gradient."));
        let mut worst = (0.0, String::new());
        for (name, var) in net.params().vars() {
            let gradient = gradients.get(var.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let error = relative(&gradient, &expected[name].data);
            assert!(error.is_finite(), "{case}: gradient of {name}");
            if error > worst.0 {
                worst = (error, name.to_owned());
            }
        }
        println!("{case}: output {error:.1e}, worst gradient {:.1e} ({})", worst.0, worst.1);
        assert!(worst.0 < 1e-4, "{case}: {worst:?}");
        assert_eq!(net.params().vars().count(), expected.len(), "{case}: PyTorch trains other tensors");
    }
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| i.to_string()).collect()
}

#[test]
fn the_unet_is_pytorchs() {
    let v = vectors();
    let of = v.values("map.labels").iter().map(|l| *l as u8).collect();
    let labels = Labels::Map { names: names(4), of };
    let net = v.net(&labels, "decoder.");
    assert!(net.params().vars().all(|(name, _)| name != format!("{ENCODER}norm.weight")));
    v.check(&net, &labels, 0.0, "map");
    // Held fixed, the encoder gets no gradient, and the decoder still does.
    let output = net.forward(&v.tensor("x"), None, true).unwrap();
    let gradients = net.loss(&output, &labels, 2, &[(0, 0), (1, 0)], 0.0).unwrap().unwrap().backward().unwrap();
    for (name, var) in net.params().vars() {
        assert_eq!(gradients.get(var.as_tensor()).is_some(), !name.starts_with(ENCODER), "{name}");
    }
}

#[test]
fn linear_heads_are_pytorchs() {
    let v = vectors();
    let labels = Labels::Classes { names: names(4), of: vec![2, 0] };
    let net = v.net(&labels, "tilehead.");
    v.check(&net, &labels, 0.2, "tile");
    let several = Labels::Multi { names: names(4), of: vec![true, false, true, false, false, false, false, true] };
    let loss = net.loss(&v.tensor("tile.output"), &several, 2, &[(0, 0), (1, 0)], 0.2).unwrap().unwrap();
    assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - v.number("multi.loss")).abs() < 1e-6);
}

#[test]
fn metrics_are_scikit_learns() {
    let v = vectors();
    let truth: Vec<bool> = v.values("metric.truth").iter().map(|t| *t > 0.5).collect();
    let scores: Vec<f64> = v.values("metric.scores").iter().map(|s| f64::from(*s)).collect();
    let said: Vec<bool> = scores.iter().map(|s| *s >= 0.5).collect();
    let (rmse, r2) = metrics::regression(v.values("metric.numbers"), v.values("metric.guesses"));
    let confusion = Confusion::new(4, v.indices("metric.classes"), &v.indices("metric.said"));
    for (name, is) in [
        ("micro_f1", metrics::micro_f1(&truth, &said)),
        ("micro_average_precision", metrics::micro_average_precision(&truth, &scores)),
        ("mean_iou", confusion.mean_iou()),
        ("rmse", rmse),
        ("r2", r2),
    ] {
        assert!((is - v.number(name)).abs() < 1e-9, "{name}: {is}, not {}", v.number(name));
    }
    // A missing number is left out; one class more that nobody saw changes nothing.
    let with_gap = |values: &[f32], gap: f32| [values, &[gap]].concat();
    let gap = metrics::regression(
        &with_gap(v.values("metric.numbers"), f32::NAN),
        &with_gap(v.values("metric.guesses"), 3.0),
    );
    assert_eq!(gap, (rmse, r2));
    let wider = Confusion::new(5, v.indices("metric.classes"), &v.indices("metric.said"));
    assert_eq!(wider.mean_iou(), confusion.mean_iou());
}

#[test]
fn probes_are_scikit_learns() {
    let v = vectors();
    let e = Matrix { rows: 90, columns: 6, data: v.values("probe.features").to_vec() };
    let (train, test): (Vec<usize>, Vec<usize>) = (0..90).partition(|i| i % 3 != 0);
    let classes = v.indices("probe.classes");
    // scikit-learn breaks a tie for the lowest class, this probe for the nearest neighbour's: compared where there is none.
    let shares = v.values("knn.shares");
    let expected = v.indices("knn.predicted");
    let mut clear = 0;
    for (at, is) in nearest_neighbours(&e, &classes, &train, &test, 7).into_iter().enumerate() {
        let mut sorted = shares[at * 3..][..3].to_vec();
        sorted.sort_by(f32::total_cmp);
        if sorted[2] > sorted[1] {
            clear += 1;
            assert_eq!(is, expected[at], "tile {at}");
        }
    }
    assert!(clear > 20, "{clear}");
    let one_hot: Vec<bool> = classes.iter().flat_map(|class| (0..3).map(move |c| c == *class)).collect();
    let is = neighbour_shares(&e, &one_hot, 3, &train, &test, 7);
    assert!(is.iter().zip(shares).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-6));

    let rows = |rows: &[usize]| rows.iter().flat_map(|i| e.row(*i)).map(|v| f64::from(*v)).collect::<Vec<_>>();
    let several: Vec<bool> =
        train.iter().flat_map(|i| &v.values("probe.several")[i * 2..][..2]).map(|t| *t > 0.5).collect();
    let fit = LogisticEach::fit(&rows(&train), 6, &several, 2, 0.5, None);
    for (is, should) in fit.scores(&rows(&test)).iter().zip(v.values("each.scores")) {
        assert!((is - f64::from(*should)).abs() < 1e-4, "{is}, not {should}");
    }
}
