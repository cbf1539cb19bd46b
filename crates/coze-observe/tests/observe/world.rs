//! A recorder and a subscriber that remember.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{Arc, Mutex},
};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*, registry::LookupSpan};

pub(crate) type Fields = BTreeMap<String, String>;

/// Everything this thread counts and logs while the world exists.
pub(crate) struct World {
    log: Log,
    snapshotter: Snapshotter,
    seen: Mutex<BTreeMap<String, Vec<f64>>>,
    _recording: metrics::LocalRecorderGuard<'static>,
    _logging: tracing::subscriber::DefaultGuard,
}

impl World {
    pub(crate) fn new() -> Self {
        let recorder: &'static _ = Box::leak(Box::new(DebuggingRecorder::new()));
        let log = Log::default();
        Self {
            snapshotter: recorder.snapshotter(),
            seen: Mutex::default(),
            _recording: metrics::set_default_local_recorder(recorder),
            _logging: tracing_subscriber::registry().with(log.clone()).set_default(),
            log,
        }
    }

    /// All series by `name{label=value,..}`: the value of a counter or gauge, the samples of a histogram.
    pub(crate) fn metrics(&self) -> BTreeMap<String, Vec<f64>> {
        let mut seen = self.seen.lock().expect("no panic");
        for (key, unit, description, value) in self.snapshotter.snapshot().into_vec() {
            assert!(unit.is_some() && description.is_some(), "{key:?} is described");
            let mut labels: Vec<_> = key.key().labels().map(|l| format!("{}={}", l.key(), l.value())).collect();
            labels.sort();
            let series = seen.entry(format!("{}{{{}}}", key.key().name(), labels.join(","))).or_default();
            // A snapshot takes the values out of the recorder, so they add up here.
            match value {
                DebugValue::Counter(n) => *series = vec![series.iter().sum::<f64>() + n as f64],
                DebugValue::Gauge(n) => *series = vec![series.iter().sum::<f64>() + n.into_inner()],
                DebugValue::Histogram(samples) => series.extend(samples.iter().map(|s| s.into_inner())),
            }
        }
        seen.clone()
    }

    /// The values of the series of this name, each by its labels.
    pub(crate) fn series(&self, name: &str) -> BTreeMap<String, Vec<f64>> {
        let of_name = |key: String| Some(key.strip_prefix(name)?.strip_prefix('{')?.strip_suffix('}')?.to_owned());
        self.metrics().into_iter().filter_map(|(key, values)| Some((of_name(key)?, values))).collect()
    }

    pub(crate) fn in_flight(&self) -> f64 {
        ["server", "client"]
            .iter()
            .flat_map(|s| self.series(&format!("coze_http_{s}_in_flight")))
            .map(|(_, v)| v[0])
            .sum()
    }

    /// The fields of each access line.
    pub(crate) fn lines(&self) -> Vec<Fields> {
        self.events("coze::access")
    }

    /// The fields of each event of this target, with its level and the name of the span it stands in.
    pub(crate) fn events(&self, target: &str) -> Vec<Fields> {
        let seen = self.log.0.lock().expect("no panic");
        seen.events.iter().filter(|(of, _)| of == target).map(|(_, fields)| fields.clone()).collect()
    }

    /// The fields of each span, its name as `span` and what was recorded twice as `twice`.
    pub(crate) fn spans(&self) -> Vec<Fields> {
        self.log.0.lock().expect("no panic").spans.iter().map(|(_, fields)| fields.clone()).collect()
    }

    /// The targets of all events.
    pub(crate) fn targets(&self) -> BTreeSet<String> {
        self.log.0.lock().expect("no panic").events.iter().map(|(target, _)| target.clone()).collect()
    }

    /// Everything that was logged or counted, as one text.
    pub(crate) fn text(&self) -> String {
        format!("{:?} {:?} {:?}", self.lines(), self.spans(), self.metrics())
    }

    /// The access line of the only request there was, which was counted once in every place, with the same labels.
    pub(crate) fn the_only_line(&self) -> Fields {
        let mut lines = self.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line = lines.remove(0);
        let labels = format!("method={},outcome={},route={}", line["method"], line["outcome"], line["route"]);
        for metric in ["requests_total", "duration_seconds", "body_duration_seconds"] {
            let series = self.series(&format!("coze_http_{}_{metric}", line["side"]));
            assert_eq!(series.keys().collect::<Vec<_>>(), [&labels], "{metric}");
            assert_eq!(series[&labels].len(), 1, "{metric}");
        }
        assert_eq!(self.series(&format!("coze_http_{}_requests_total", line["side"]))[&labels], [1.0]);
        assert_eq!(self.in_flight(), 0.0);
        let spans = self.spans();
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0]["outcome"], line["outcome"]);
        assert_eq!(spans[0].get("twice"), None, "a field of a span is recorded once");
        line
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    spans: Vec<(Id, Fields)>,
    events: Vec<(String, Fields)>,
}

struct Write<'a>(&'a mut Fields);

impl Visit for Write<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if self.0.insert(field.name().to_owned(), value.to_owned()).is_some() {
            self.0.insert("twice".to_owned(), field.name().to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut fields = Fields::from([("span".to_owned(), attributes.metadata().name().to_owned())]);
        attributes.record(&mut Write(&mut fields));
        self.0.lock().expect("no panic").spans.push((id.clone(), fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut seen = self.0.lock().expect("no panic");
        let span = seen.spans.iter_mut().rev().find(|(known, _)| known == id).expect("a known span");
        values.record(&mut Write(&mut span.1));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let span = context.lookup_current().map_or("none", |span| span.name());
        let mut fields = Fields::from([
            ("level".to_owned(), event.metadata().level().to_string()),
            ("in_span".to_owned(), span.to_owned()),
        ]);
        event.record(&mut Write(&mut fields));
        self.0.lock().expect("no panic").events.push((event.metadata().target().to_owned(), fields));
    }
}
