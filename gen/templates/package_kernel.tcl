# Package the unit as a user-managed kernel of Vitis, moska_@name@.xo in the current folder:
#   vivado -mode batch -source vitis/package_kernel.tcl
# The host reads and writes its registers (xrt::ip) and keeps the ring of jobs in device memory.
set root [file normalize [file join [file dirname [info script]] ..]]
set ip [file join [pwd] kernel_ip]
set xo [file join [pwd] moska_@name@.xo]

create_project -force moska_kernel [file join [pwd] kernel_project]
add_files -norecurse [list [file join $root rtl moska.v] [file join $root rtl moska_kernel.v]]
set_property top moska_kernel [current_fileset]
update_compile_order -fileset sources_1

ipx::package_project -root_dir $ip -vendor moska -library unit -taxonomy /KernelIP -import_files
set core [ipx::current_core]
set_property name moska_kernel $core
set_property version @version@ $core
set_property sdx_kernel true $core
set_property sdx_kernel_type rtl $core
set_property vitis_drc {ctrl_protocol user_managed} $core

ipx::infer_bus_interface interrupt xilinx.com:signal:interrupt_rtl:1.0 $core
foreach bus {s_axi_control @masters@} {
  ipx::associate_bus_interfaces -busif $bus -clock ap_clk -reset ap_rst_n $core
}
# Bursts are of type INCR and full width; up to @max_beats@ beats.
foreach bus {@masters@} {
  foreach {name value} {SUPPORTS_NARROW_BURST 0 HAS_BURST 0 MAX_BURST_LENGTH @max_beats@} {
    set parameter [ipx::add_bus_parameter $name [ipx::get_bus_interfaces $bus -of_objects $core]]
    set_property value $value $parameter
  }
}

# Arguments: addresses of 64 bits. They tell v++ which memory each master reaches; the names are
# those that link.cfg connects.
set map [ipx::get_memory_maps s_axi_control -of_objects $core]
set block [ipx::get_address_blocks -of_objects $map]
set_property range 4096 $block
foreach {name offset master} {
@arguments@
} {
  set register [ipx::add_register $name $block]
  set_property address_offset $offset $register
  set_property size 64 $register
  set parameter [ipx::add_register_parameter ASSOCIATED_BUSIF $register]
  set_property value $master $parameter
}

ipx::create_xgui_files $core
ipx::update_checksums $core
ipx::check_integrity -kernel $core
ipx::save_core $core
close_project

package_xo -force -xo_path $xo -kernel_name moska_kernel -ip_directory $ip \
  -ctrl_protocol user_managed
