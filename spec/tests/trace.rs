//! The driver's tracepoints, in `guest-driver/trace.h`, and the definitions of their numbers.

use virtio_hmm_spec::uapi::trace::Cause;

const HEADER: &str = include_str!("../../guest-driver/trace.h");

#[test]
fn a_trace_shows_the_word_of_each_cause_and_no_other() {
    let table = HEADER
        .split_once("__print_symbolic(__entry->cause,")
        .unwrap()
        .1;
    let table = table.split_once("),\n").unwrap().0;
    let pairs: Vec<(u32, String)> = table
        .split('{')
        .skip(1)
        .map(|pair| {
            let (number, word) = pair.split_once(',').unwrap();
            let word = word
                .trim()
                .trim_start_matches('"')
                .split('"')
                .next()
                .unwrap();
            (number.trim().parse().unwrap(), word.to_owned())
        })
        .collect();
    let words = Cause::all().map(|cause| (cause.raw(), cause.word().to_owned()));
    assert_eq!(pairs, words.collect::<Vec<_>>());
}

#[test]
fn each_event_has_a_device_and_a_space_and_all_fields_are_printed() {
    let events: Vec<&str> = HEADER.split("TRACE_EVENT(").skip(1).collect();
    assert_eq!(events.len(), 7);
    for event in events {
        let fields: Vec<&str> = event
            .split("__field(")
            .skip(1)
            .map(|field| field.split([',', ')']).nth(1).unwrap().trim())
            .collect();
        assert_eq!(fields[..2], ["device", "space"], "{event}");
        for field in fields {
            let assigned = format!("__entry->{field} = ");
            assert!(event.contains(&assigned), "{field}: {event}");
            let shown = event.split_once("TP_printk(").unwrap().1;
            assert!(
                shown.contains(&format!("__entry->{field}")),
                "{field}: {event}"
            );
        }
    }
}
