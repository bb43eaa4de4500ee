//! The points are the moments that the specification leaves open, and the documentation lists them.

use std::collections::BTreeSet;

use virtio_hmm_spec::points::Point;

const DEVICE: &str = include_str!("../virtio-hmm.md");
const TABLE: &str = include_str!("../../docs/lateness.md");

/// The table of the documentation.
fn table() -> String {
    let mut table = String::from("| point | it is reached when | section | freedom |\n");
    table += "| --- | --- | --- | --- |\n";
    for point in Point::ALL {
        let anchor = point.section().to_lowercase().replace(' ', "-");
        let labels = match point.order() {
            None => format!("{{{}}}", point.freedom()),
            Some(order) => format!("{{{}}}, {{{order}}}", point.freedom()),
        };
        table += &format!(
            "| `{point}` | {} | [{}](../spec/virtio-hmm.md#{anchor}) | {labels} |\n",
            point.meaning(),
            point.section(),
        );
    }
    table
}

#[test]
fn the_documentation_lists_every_point() {
    let table = table();
    assert!(
        TABLE.ends_with(&table),
        "docs/lateness.md does not end with this table:\n{table}"
    );
}

#[test]
fn each_point_is_a_freedom_of_the_specification() {
    let headings: BTreeSet<&str> = DEVICE
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim())
        .collect();
    let open = DEVICE
        .split("\n## ")
        .find(|section| section.starts_with("What is not defined"))
        .expect("there is such a section");
    let mut cited = BTreeSet::new();
    for point in Point::ALL {
        assert!(headings.contains(point.section()), "{point}");
        cited.extend([Some(point.freedom()), point.order()].into_iter().flatten());
    }
    // Conversely, each freedom has a point.
    let given: BTreeSet<&str> = open
        .split("{dev-")
        .skip(1)
        .filter_map(|rest| rest.split('}').next())
        .collect();
    let cited: BTreeSet<&str> = cited
        .into_iter()
        .map(|label| label.strip_prefix("dev-").expect("it is the device's"))
        .collect();
    assert_eq!(given, cited);
}

#[test]
fn points_have_names_of_their_own() {
    let names: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
    assert_eq!(names.len(), Point::ALL.len());
    for point in Point::ALL {
        assert_eq!(Point::from_name(point.name()), Some(*point));
        assert!(point.name().starts_with(point.group()));
        assert!(point.meaning().ends_with('.'));
    }
    assert_eq!(Point::from_name("control"), None);
}
