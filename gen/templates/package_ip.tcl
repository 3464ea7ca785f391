# Package the unit as IP of Vivado, into a folder `ip` of the current one:
#   vivado -mode batch -source vivado/package_ip.tcl
# Then add that folder to a project's IP repositories (`ip_repo_paths`).
set root [file normalize [file join [file dirname [info script]] ..]]
set out [file join [pwd] ip]

create_project -force moska_ip [file join [pwd] ip_project]
add_files -norecurse [file join $root rtl moska.v]
add_files -norecurse -fileset constrs_1 [file join $root constraints moska_ooc.xdc]
set_property USED_IN {out_of_context synthesis implementation} \
  [get_files [file join $root constraints moska_ooc.xdc]]
set_property top moska [current_fileset]
update_compile_order -fileset sources_1

ipx::package_project -root_dir $out -vendor moska -library unit -taxonomy /UserIP -import_files
set core [ipx::current_core]
set_property name moska_@name@ $core
set_property version @version@ $core
set_property display_name {moska @name@} $core
set_property description {Shared-KV attention unit, configuration @name@} $core
set_property auto_family_support_level level_2 $core

ipx::infer_bus_interface interrupt xilinx.com:signal:interrupt_rtl:1.0 $core
foreach bus {s_axil @masters@} {
  ipx::associate_bus_interfaces -busif $bus -clock aclk -reset aresetn $core
}
# Bursts are of type INCR and full width; up to @max_beats@ beats.
foreach bus {@masters@} {
  foreach {name value} {SUPPORTS_NARROW_BURST 0 HAS_BURST 0 MAX_BURST_LENGTH @max_beats@} {
    set parameter [ipx::add_bus_parameter $name [ipx::get_bus_interfaces $bus -of_objects $core]]
    set_property value $value $parameter
  }
}
set map [ipx::get_memory_maps s_axil -of_objects $core]
set_property range 4096 [ipx::get_address_blocks -of_objects $map]

ipx::create_xgui_files $core
ipx::update_checksums $core
ipx::check_integrity $core
ipx::save_core $core
close_project
