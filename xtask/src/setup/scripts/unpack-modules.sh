# Runs in the toolbox: puts the modules "$3"… of the directory "$2" unpacked into "$1".
target=$1
source=$2
shift 2
for module; do
	name=${module##*/}
	case $name in
	*.ko) cp "$source/$module" "$target/$name" ;;
	*.ko.xz) xz -dc "$source/$module" >"$target/${name%.xz}" ;;
	*.ko.zst) zstd -dcq "$source/$module" >"$target/${name%.zst}" ;;
	*) echo "unknown packing: $module"; exit 1 ;;
	esac
done
