//! A recorder and a subscriber that remember what is said of authentication.

use std::{
    collections::BTreeMap,
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
    _recording: metrics::LocalRecorderGuard<'static>,
    _logging: tracing::subscriber::DefaultGuard,
}

impl World {
    pub(crate) fn new() -> Self {
        let recorder: &'static _ = Box::leak(Box::new(DebuggingRecorder::new()));
        let log = Log::default();
        Self {
            snapshotter: recorder.snapshotter(),
            _recording: metrics::set_default_local_recorder(recorder),
            _logging: tracing_subscriber::registry().with(log.clone()).set_default(),
            log,
        }
    }

    /// The events that have a field of this name.
    pub(crate) fn events(&self, field: &str) -> Vec<Fields> {
        let seen = self.log.0.lock().expect("no panic");
        seen.events.iter().filter(|fields| fields.contains_key(field)).cloned().collect()
    }

    /// The spans that have a field of this name.
    pub(crate) fn spans(&self, field: &str) -> Vec<Fields> {
        let seen = self.log.0.lock().expect("no panic");
        seen.spans.iter().map(|(_, fields)| fields).filter(|fields| fields.contains_key(field)).cloned().collect()
    }

    /// Takes what was counted under the names that begin so: labels, and the value or the samples.
    pub(crate) fn counted(&self, prefix: &str) -> Vec<(String, Fields, Vec<f64>)> {
        let series = self.snapshotter.snapshot().into_vec().into_iter();
        let of_name = series.filter(|(key, ..)| key.key().name().starts_with(prefix));
        let counted = of_name.map(|(key, .., value)| {
            let labels = key.key().labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
            let values = match value {
                DebugValue::Counter(n) => vec![n as f64],
                DebugValue::Gauge(n) => vec![n.into_inner()],
                DebugValue::Histogram(samples) => samples.iter().map(|sample| sample.into_inner()).collect(),
            };
            (key.key().name().to_owned(), labels, values)
        });
        counted.collect()
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    spans: Vec<(Id, Fields)>,
    events: Vec<Fields>,
}

struct Write<'a>(&'a mut Fields);

impl Visit for Write<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let before = self.0.insert(field.name().to_owned(), value.to_owned());
        assert_eq!(before, None, "{field} is said once");
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Write(&mut fields));
        self.0.lock().expect("no panic").spans.push((id.clone(), fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut seen = self.0.lock().expect("no panic");
        // The last one: an id is given again when its span is closed.
        let (_, fields) = seen.spans.iter_mut().rfind(|(of, _)| of == id).expect("a span");
        values.record(&mut Write(fields));
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Write(&mut fields));
        self.0.lock().expect("no panic").events.push(fields);
    }
}
