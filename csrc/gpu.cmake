# Images of kernels/gpu/kernels.cu, which the driver loads at run time: nothing is linked, and neither compiler is needed
# for the module. KVCOMMONS_GPU=cuda wants nvcc 13 (a toolkit in CUDA_HOME or PATH, or the five pinned wheels of the group
# gpu-build beside the Python that builds), KVCOMMONS_GPU=hip wants hipcc.
set(KVCOMMONS_GPU "" CACHE STRING "cuda, hip, or both as a list; empty for none")
set(KVCOMMONS_CUDA_ARCHS "75;80;90;100" CACHE STRING "Compute capabilities with machine code; the last one's PTX serves newer GPUs")
set(KVCOMMONS_HIP_ARCHS "gfx90a;gfx940" CACHE STRING "AMD's targets")
set(kernel_source ${CMAKE_CURRENT_SOURCE_DIR}/kernels/gpu/kernels.cu)
file(GLOB kernel_headers CONFIGURE_DEPENDS kernels/*.h kernels/gpu/*.h kernels/cpu/quant.h)

function(kvcommons_image name)
  add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/${name} COMMAND ${ARGN} -I${CMAKE_CURRENT_SOURCE_DIR} -o ${CMAKE_BINARY_DIR}/${name} ${kernel_source}
                     DEPENDS ${kernel_source} ${kernel_headers} VERBATIM)
  add_custom_target(image${name} ALL DEPENDS ${CMAKE_BINARY_DIR}/${name})
  install(FILES ${CMAKE_BINARY_DIR}/${name} DESTINATION kvcommons_core)
endfunction()

if("cuda" IN_LIST KVCOMMONS_GPU)
  find_package(Python 3.11 COMPONENTS Interpreter)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_paths()['purelib'])"
                  OUTPUT_VARIABLE purelib OUTPUT_STRIP_TRAILING_WHITESPACE)
  find_program(KVCOMMONS_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin ${purelib}/nvidia/cu13/bin REQUIRED)
  set(codes "")
  foreach(arch IN LISTS KVCOMMONS_CUDA_ARCHS)
    list(APPEND codes -gencode arch=compute_${arch},code=sm_${arch})
  endforeach()
  list(GET KVCOMMONS_CUDA_ARCHS -1 last)
  list(APPEND codes -gencode arch=compute_${last},code=compute_${last})
  # No fused multiply-add, as everywhere: the quantisers' bytes are those of the CPU.
  kvcommons_image(_cuda.fatbin ${KVCOMMONS_NVCC} -fatbin -std=c++20 -O3 --fmad=false --threads 0 ${codes})
endif()
if("hip" IN_LIST KVCOMMONS_GPU)
  find_program(KVCOMMONS_HIPCC hipcc HINTS /opt/rocm/bin REQUIRED)
  set(targets ${KVCOMMONS_HIP_ARCHS})
  list(TRANSFORM targets PREPEND --offload-arch=)
  kvcommons_image(_hip.hsaco ${KVCOMMONS_HIPCC} --genco -std=c++20 -O3 -ffp-contract=off ${targets})
endif()
